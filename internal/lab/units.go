package lab

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"dozo/internal/lab/wan"
	"dozo/internal/size"
)

// ErrUsage is a command, setting or name that makes no sense.
var ErrUsage = errors.New("wrong usage")

var rateUnits = []struct {
	suffix string
	factor float64
}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}, {"kbps", 1e3}, {"mbps", 1e6}, {"gbps", 1e9}, {"bps", 1}}

// ParseRate takes 100mbit, 2.5Gbit, 64kbit, also with "/s" behind; unlimited and 0 are no limit.
func ParseRate(text string) (wan.Rate, error) {
	s := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(text)), "/s")
	if s == "unlimited" || s == "0" {
		return 0, nil
	}
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := parseNumber(number)
		if err != nil || f*u.factor < 1 || f*u.factor > math.MaxInt64/16 {
			break
		}
		return wan.Rate(math.Round(f * u.factor)), nil
	}
	return 0, fmt.Errorf("%w: rate %q: want a number and kbit, mbit or gbit, such as 100mbit, or unlimited", ErrUsage, text)
}

// parseNumber takes digits with an optional fraction: what ParseFloat takes besides is no number to people.
func parseNumber(text string) (float64, error) {
	s := strings.TrimSpace(text)
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(s, 64)
}

// FormatRate writes a rate as ParseRate takes it.
func FormatRate(r wan.Rate) string {
	switch {
	case r == 0:
		return "unlimited"
	case r >= 1e9:
		return strconv.FormatFloat(float64(r)/1e9, 'f', -1, 64) + "gbit"
	case r >= 1e6:
		return strconv.FormatFloat(float64(r)/1e6, 'f', -1, 64) + "mbit"
	case r >= 1e3:
		return strconv.FormatFloat(float64(r)/1e3, 'f', -1, 64) + "kbit"
	}
	return strconv.FormatInt(int64(r), 10) + "bit"
}

// ParseShare takes a share of packets: 0.1%, or 0.
func ParseShare(text string) (float64, error) {
	s := strings.TrimSpace(text)
	number, percent := strings.CutSuffix(s, "%")
	f, err := parseNumber(number)
	if err != nil || f > 100 || !percent && f != 0 {
		return 0, fmt.Errorf("%w: share %q: want a percentage, such as 0.1%%", ErrUsage, text)
	}
	return f / 100, nil
}

// FormatShare writes a share as ParseShare takes it.
func FormatShare(f float64) string {
	return strconv.FormatFloat(math.Round(f*1e10)/1e8, 'f', -1, 64) + "%"
}

// ParseBuffer takes a size, or auto (0).
func ParseBuffer(text string) (int, error) {
	if strings.EqualFold(text, "auto") {
		return 0, nil
	}
	n, err := size.Parse(text)
	if err != nil {
		return 0, fmt.Errorf("%w: buffer: %w", ErrUsage, err)
	}
	if n == 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("%w: buffer %q: want some bytes, less than 2 GiB, or auto", ErrUsage, text)
	}
	return int(n), nil
}

func parseDelay(text string) (time.Duration, error) {
	if text == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%w: time %q: want a number and a unit, such as 18ms", ErrUsage, text)
	}
	return d, nil
}
