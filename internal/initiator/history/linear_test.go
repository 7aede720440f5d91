package history

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func w(v uint64, call, ret int64) Op { return Op{Write: true, Value: v, Call: call, Return: ret} }
func r(v uint64, call, ret int64) Op { return Op{Value: v, Call: call, Return: ret} }

func TestCheckRegisters(t *testing.T) {
	for name, tc := range map[string]struct {
		ops []Op
		bad bool
	}{
		"nothing":                         {nil, false},
		"start value":                     {[]Op{r(0, 1, 2)}, false},
		"sequence":                        {[]Op{w(1, 1, 2), r(1, 3, 4), w(2, 5, 6), r(2, 7, 8)}, false},
		"stale read":                      {[]Op{w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)}, true},
		"stale start":                     {[]Op{w(1, 1, 2), r(0, 3, 4)}, true},
		"concurrent, either":              {[]Op{w(1, 1, 10), w(2, 1, 10), r(1, 11, 12)}, false},
		"concurrent, both orders":         {[]Op{w(1, 1, 10), w(2, 1, 10), r(1, 11, 12), r(2, 13, 14)}, true},
		"read during the write":           {[]Op{w(1, 1, 10), r(1, 2, 3), r(1, 4, 5)}, false},
		"new, then old, during the write": {[]Op{w(1, 1, 10), r(1, 2, 3), r(0, 4, 5)}, true},
		"pending, not seen":               {[]Op{w(1, 1, Pending), r(0, 3, 4)}, false},
		"pending, seen late":              {[]Op{w(1, 1, Pending), r(0, 3, 4), r(1, 5, 6)}, false},
		"pending, seen and gone":          {[]Op{w(1, 1, Pending), r(1, 3, 4), r(0, 5, 6)}, true},
		"late write after its retry":      {[]Op{w(1, 1, Pending), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)}, false}, // a register allows it
		"late write, between reads":       {[]Op{w(1, 1, 2), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)}, true},
		"read before write":               {[]Op{r(1, 1, 2), w(1, 3, 4)}, true},
		"never written":                   {[]Op{r(7, 1, 2)}, true},
		"twice":                           {[]Op{w(1, 1, 2), w(1, 3, 4)}, true},
	} {
		err := CheckRegisters(tc.ops)
		var nl *NotLinearizable
		if (err != nil) != tc.bad || err != nil && !errors.As(err, &nl) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// linearizable searches all orders: slow, and obviously right.
func linearizable(ops []Op, value uint64) bool {
	if !slices.ContainsFunc(ops, func(o Op) bool { return o.Return != Pending }) {
		return true
	}
	for i, o := range ops {
		if slices.ContainsFunc(ops, func(x Op) bool { return x.Return < o.Call }) || !o.Write && o.Value != value {
			continue
		}
		v := value
		if o.Write {
			v = o.Value
		}
		rest := slices.Delete(slices.Clone(ops), i, i+1)
		if linearizable(rest, v) {
			return true
		}
	}
	return false
}

func TestCheckRegistersAgreesWithASearch(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	good, bad := 0, 0
	for range 20000 {
		var ops []Op
		times := rng.Perm(20)
		for i := range 2 + rng.IntN(5) {
			a, b := int64(times[2*i]), int64(times[2*i+1])
			o := Op{Value: uint64(rng.IntN(4)), Call: min(a, b), Return: max(a, b)}
			if rng.IntN(2) == 0 {
				o.Write, o.Value = true, uint64(i+1)
				if rng.IntN(6) == 0 {
					o.Return = Pending
				}
			}
			ops = append(ops, o)
		}
		want := linearizable(ops, 0)
		if got := CheckRegisters(ops) == nil; got != want {
			t.Fatalf("seed %d: %+v: linearizable is %v, the check says %v", seed, ops, want, got)
		}
		if want {
			good++
		} else {
			bad++
		}
	}
	if good < 1000 || bad < 1000 {
		t.Fatalf("%d good and %d bad histories test little", good, bad)
	}
}

func TestRecorder(t *testing.T) {
	rec := NewRecorder()
	a := rec.Begin(1, true, 5, 10)
	b := rec.Begin(2, false, 5, 0)
	rec.Begin(2, false, 5, 0) // never answered
	rec.Begin(3, true, 5, 11) // never answered
	rec.End(a, 10)
	rec.End(b, 10)
	ops := rec.Ops()
	if len(ops) != 3 || ops[1].Value != 10 || ops[2].Return != Pending || ops[0].Return < ops[0].Call {
		t.Fatalf("%+v", ops)
	}
	var out bytes.Buffer
	if err := rec.WriteJSON(&out); err != nil || strings.Count(out.String(), "\n") != 3 {
		t.Fatalf("%s %v", out.String(), err)
	}
}
