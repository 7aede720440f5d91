package control

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// envelope is around every value: {"v":1,"change":"...","spec":{...}}. The version says which fields spec may
// have: a value with a field that this version doesn't know is refused, since writing it back would drop it.
type envelope struct {
	V      int             `json:"v"`
	Change string          `json:"change,omitempty"` // ID of the change that wrote the value
	Spec   json.RawMessage `json:"spec"`
}

// storedHost is a Host as it is kept: with the secrets, which Host's own JSON redacts.
type storedHost struct {
	Host
	CHAP storedCHAP `json:"chap,omitzero"` // takes the place of Host.CHAP
}

type storedCHAP struct {
	InUser    string `json:"in_user,omitempty"`
	InSecret  string `json:"in_secret,omitempty"`
	OutUser   string `json:"out_user,omitempty"`
	OutSecret string `json:"out_secret,omitempty"`
}

func storeCHAP(c CHAP) storedCHAP {
	return storedCHAP{c.InUser, c.InSecret.Reveal(), c.OutUser, c.OutSecret.Reveal()}
}

func (c storedCHAP) chap() CHAP {
	return CHAP{c.InUser, NewSecret(c.InSecret), c.OutUser, NewSecret(c.OutSecret)}
}

func storeHost(h Host) storedHost {
	c := h.CHAP
	h.CHAP = CHAP{}
	return storedHost{Host: h, CHAP: storeCHAP(c)}
}

func (s storedHost) host() Host {
	h := s.Host
	h.CHAP = s.CHAP.chap()
	return h
}

// encode makes the stored form. A type of ours that can not be encoded is a bug.
func encode(spec any, changeID string) []byte {
	switch s := spec.(type) {
	case Host:
		spec = storeHost(s)
	case CHAP:
		spec = storeCHAP(s)
	}
	body, err := json.Marshal(spec)
	if err == nil {
		body, err = json.Marshal(envelope{V: FormatVersion, Change: changeID, Spec: body})
	}
	if err != nil {
		panic(fmt.Sprintf("control: encode %T: %v", spec, err))
	}
	return body
}

// decode takes a stored value; key is for the message.
func decode[T any](key string, value []byte) (spec T, changeID string, err error) {
	var e envelope
	// The version is looked at before anything else may fail: other versions may look any way beside it.
	if err := json.Unmarshal(value, &e); err != nil {
		return spec, "", fmt.Errorf("control store: value of %s: %w", key, err)
	}
	if e.V > FormatVersion {
		return spec, "", fmt.Errorf("control store: %s is in format %d, this program knows formats up to %d: %w; upgrade this node", key, e.V, FormatVersion, ErrNewerFormat)
	}
	if e.V < 1 {
		return spec, "", fmt.Errorf("control store: value of %s has no format version", key)
	}
	if err := strict(e.Spec, &spec); err != nil {
		return spec, "", fmt.Errorf("control store: value of %s: %w", key, err)
	}
	return spec, e.Change, nil
}

func decodeHost(key string, value []byte) (Host, error) {
	s, _, err := decode[storedHost](key, value)
	return s.host(), err
}

// strict decodes one JSON value without fields that v doesn't have and with nothing behind it.
func strict(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("more than one JSON value")
	}
	return nil
}

// changeOf gives the change ID of a value, "" where there is none.
func changeOf(value []byte) string {
	var e envelope
	if json.Unmarshal(value, &e) != nil {
		return ""
	}
	return e.Change
}

// summary is a specification's JSON for the audit log, without secrets.
func summary(spec any) string {
	if spec == nil {
		return ""
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(b)
}
