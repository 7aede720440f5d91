package control

import "log/slog"

// redacted is what a Secret shows instead of itself.
const redacted = "(secret)"

// Secret is a CHAP secret or its like. Every form that could reach a log, an error, an API answer or a
// listing shows only that there is one; Reveal is the one way to the content.
type Secret struct{ text string }

// NewSecret wraps a secret.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal gives the secret itself, for computing a CHAP response or for the stored form.
func (s Secret) Reveal() string { return s.text }

// IsZero reports that there is none.
func (s Secret) IsZero() bool { return s.text == "" }

func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from showing the field.
func (s Secret) GoString() string { return "control.Secret{" + s.String() + "}" }

// LogValue keeps slog from showing the field.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText makes JSON and YAML show the redacted form. There is no UnmarshalText on purpose: what was
// redacted can not be read back, and what comes in is wrapped by NewSecret where it is checked.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
