package reserve

import (
	"fmt"
	"strings"
)

// Describe says for people what an encoded state holds.
func Describe(b []byte) (string, error) {
	s, err := DecodeState(b)
	if err != nil {
		return "", err
	}
	return s.String(), nil
}

func (s *State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "version %d, generation %d, %d events", s.Version, s.Generation, s.Events)
	if s.Type != NoReservation {
		fmt.Fprintf(&b, ", reservation of type %d", s.Type)
	}
	if s.Persist {
		b.WriteString(", APTPL")
	}
	for _, r := range s.Registrations {
		fmt.Fprintf(&b, "\nregistered %s with key %016x", r.Nexus, r.Key)
		if r.Holder {
			b.WriteString(", holds the reservation")
		}
	}
	if s.Legacy != nil {
		fmt.Fprintf(&b, "\nreserved by %s", s.Legacy.Nexus)
	}
	if s.Current != (Modes{}) || s.Saved != (Modes{}) {
		fmt.Fprintf(&b, "\nmodes %+v, saved %+v", s.Current, s.Saved)
	}
	if z := s.Sanitize; z.Kind != SanitizeNone {
		fmt.Fprintf(&b, "\nsanitize of kind %d, %d passes", z.Kind, z.Passes)
	}
	return b.String()
}
