package size

import (
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "4096": 4096, "1K": 1 << 10, "1k": 1 << 10, "1KiB": 1 << 10, "1Ki": 1 << 10, "1kB": 1000, "20G": 20 << 30, "20 G": 20 << 30,
		" 1TiB ": 1 << 40, "512MiB": 512 << 20, "1MB": 1e6, "2TB": 2e12, "1.5G": 3 << 29, "0.5k": 512, "4096B": 4096, "15E": 15 << 60,
		"18446744073709551615": math.MaxUint64, "3gb": 3e9,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]error{
		"": ErrSyntax, "G": ErrSyntax, "1X": ErrSyntax, "1GiBs": ErrSyntax, "-1G": ErrSyntax, "1.2.3": ErrSyntax, ".": ErrSyntax, "1e9": ErrSyntax,
		"16E": ErrRange, "18446744073709551616": ErrRange, "99999999999999999999T": ErrRange,
	} {
		if _, err := Parse(text); !errors.Is(err, want) {
			t.Errorf("Parse(%q): %v; want %v", text, err, want)
		}
	}
	if _, err := Parse("1.0001K"); err == nil || !strings.Contains(err.Error(), "whole number") {
		t.Errorf("a fraction of a byte: %v", err)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.50 KiB", 20 << 30: "20 GiB", 1<<30 - 1: "1.00 GiB", 1<<40 + 1<<39: "1.50 TiB",
		10<<20 + 1: "10.0 MiB", 123456789: "118 MiB", math.MaxUint64: "16 EiB",
	} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) = %q; want %q", n, got, want)
		}
	}
}

func TestExactIsParsedBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64().Draw(t, "n") >> rapid.IntRange(0, 63).Draw(t, "right") << rapid.IntRange(0, 40).Draw(t, "left")
		if got, err := Parse(Exact(n)); err != nil || got != n {
			t.Fatalf("Parse(Exact(%d) = %q) = %d, %v", n, Exact(n), got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"20G", "1.5TiB", "16E", "kB", "0.1", "9999999999999999999999999999999999999999", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(Exact(n)); err != nil || again != n {
			t.Fatalf("Parse(%q) = %d, and %q is %d, %v", text, n, Exact(n), again, err)
		}
		Format(n)
	})
}
