package lab

import "testing"

// FuzzUnits: what people write as rates, shares, buffers and times is a value in bounds that is written back as itself, or an
// error.
func FuzzUnits(f *testing.F) {
	for _, s := range []string{"100mbit", "2.5Gbit/s", "unlimited", "0", "1e9bit", "0.1%", "100%", "NaN%", ".", "64KiB", "auto", "18ms", "-1s", "9223372036854775807gbit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseRate(text); err == nil {
			if again, err := ParseRate(FormatRate(r)); err != nil || r < 0 || again != r {
				t.Errorf("rate %q is %d, written %q, which is %d, %v", text, r, FormatRate(r), again, err)
			}
		}
		if p, err := ParseShare(text); err == nil && !(p >= 0 && p <= 1) {
			t.Errorf("share %q is %v", text, p)
		} else if err == nil {
			if _, err := ParseShare(FormatShare(p)); err != nil {
				t.Errorf("share %q is %v, written %q: %v", text, p, FormatShare(p), err)
			}
		}
		if n, err := ParseBuffer(text); err == nil && n < 0 {
			t.Errorf("buffer %q is %d", text, n)
		}
		if d, err := parseDelay(text); err == nil && d < 0 {
			t.Errorf("time %q is %v", text, d)
		}
	})
}
