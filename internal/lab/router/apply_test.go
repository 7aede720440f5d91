package router

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"dozo/internal/lab/wan"
)

func testServer(t *testing.T) *server {
	t.Helper()
	l := &loop{start: time.Now()}
	n, err := wan.New(2, 1, l)
	if err != nil {
		t.Fatal(err)
	}
	if l.pool, err = newPool(1 << 20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.pool.close() })
	l.net = n
	return &server{loop: l, cfg: Config{Sites: []SiteConfig{{Name: "a"}, {Name: "b"}}}, index: map[string]int{"a": 0, "b": 1}}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	s := testServer(t)
	d, loss, bad := 5*time.Millisecond, 0.5, 1.5
	rate, tiny := wan.Rate(1e6), 10
	good := []Change{
		{Kind: KindPath, From: "a", To: "b", Patch: Patch{Delay: &d}},
		{Kind: KindPath, From: "a", To: "b", Patch: Patch{Loss: &loss}},
		{Kind: KindUp, Site: "a", Patch: Patch{Rate: &rate}},
	}
	for name, c := range map[string]Change{
		"loss":       {Kind: KindPath, From: "a", To: "b", Patch: Patch{Loss: &bad}},
		"buffer":     {Kind: KindDown, Site: "a", Patch: Patch{Buffer: &tiny}},
		"same site":  {Kind: KindPath, From: "a", To: "a"},
		"no site":    {Kind: KindUp, Site: "c"},
		"delay here": {Kind: KindUp, Site: "a", Patch: Patch{Delay: &d}},
		"kind":       {Kind: "x"},
	} {
		if err := s.apply(0, append(good[:3:3], c)); !errors.Is(err, ErrSetting) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p := s.loop.net.Path(0, 1); p != (wan.Path{}) {
		t.Fatalf("changed: %+v", p)
	}
	if err := s.apply(0, good); err != nil {
		t.Fatal(err)
	}
	if p := s.loop.net.Path(0, 1); p.Delay != d || p.Loss != loss || s.loop.net.Path(1, 0) != (wan.Path{}) {
		t.Fatalf("%+v", p)
	}
	st := s.newState()
	s.state(st)
	if len(st.Paths) != 2 || len(st.Access) != 2 || st.Access[0].Up.Rate != rate || st.Paths[0].Settings.Delay != d {
		t.Fatalf("%+v", st)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"apply","changes":[{"kind":"path","from":"a","to":"b","patch":{"delay":5000000,"loss":0.1}}]}`))
	f.Add([]byte(`{"op":"nothing"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if bytes.Contains(bytes.ToLower(line), []byte(OpStop)) {
			return
		}
		s := &server{loop: &loop{}}
		s.loop.mu.closed = true // nothing reaches the network
		if r := s.answer(line); r.Error == "" && r.State == nil {
			t.Fatalf("%q was done", line)
		}
	})
}
