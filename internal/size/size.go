package size

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

const letters = "KMGTPE"

// ErrSyntax is text that is no size.
var ErrSyntax = errors.New("want a number and a unit, such as 20G or 512MiB (K M G T P E are powers of 1024, kB MB GB TB PB EB of 1000)")

// ErrRange is a size that no disk has.
var ErrRange = errors.New("does not fit in 64 bits")

// Parse takes a decimal number with an optional fraction and an optional unit, in any case, with or without
// spaces between. The result must be a whole number of bytes.
func Parse(text string) (uint64, error) {
	fail := func(err error) (uint64, error) { return 0, fmt.Errorf("size %q: %w", text, err) }
	s := strings.TrimSpace(text)
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	number, unit := s[:end], strings.TrimSpace(s[end:])
	// The bounds keep hostile text from becoming a huge rational.
	if number == "" || number == "." || len(number) > 40 || strings.Count(number, ".") > 1 {
		return fail(ErrSyntax)
	}
	factor, ok := unitFactor(unit)
	if !ok {
		return fail(ErrSyntax)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return fail(ErrSyntax)
	}
	r.Mul(r, new(big.Rat).SetInt(factor))
	if !r.IsInt() {
		return fail(errors.New("not a whole number of bytes"))
	}
	if !r.Num().IsUint64() {
		return fail(ErrRange)
	}
	return r.Num().Uint64(), nil
}

// unitFactor gives what a unit multiplies by.
func unitFactor(unit string) (*big.Int, bool) {
	u := strings.ToUpper(unit)
	if u == "" || u == "B" {
		return big.NewInt(1), true
	}
	power := strings.IndexByte(letters, u[0]) + 1
	if power == 0 {
		return nil, false
	}
	base := int64(1024)
	switch u[1:] {
	case "", "I", "IB":
	case "B":
		base = 1000
	default:
		return nil, false
	}
	return new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(power)), nil), true
}

// Format gives a size for reading: three digits and a binary unit, rounded, such as 1.50 GiB.
func Format(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, power := float64(n), 0
	// 1023.5 would be printed as 1024.
	for v >= 1023.5 && power < len(letters) {
		v /= 1024
		power++
	}
	digits := 0
	switch {
	case v == math.Trunc(v):
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + letters[power-1:power] + "iB"
}

// Exact gives a size without loss, in the largest binary unit that has no fraction: 20G, 1536M, 4097.
func Exact(n uint64) string {
	power := 0
	for n != 0 && n%1024 == 0 && power < len(letters) {
		n /= 1024
		power++
	}
	if power == 0 {
		return strconv.FormatUint(n, 10)
	}
	return strconv.FormatUint(n, 10) + letters[power-1:power]
}
