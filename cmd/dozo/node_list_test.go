package main

import (
	"testing"

	"dozo/internal/api/dozov1"
)

func TestNodeSpace(t *testing.T) {
	store := func(fs, total, capacity, used uint64) *dozov1.NodeStore {
		return &dozov1.NodeStore{FileSystem: fs, FileSystemBytes: total, CapacityBytes: capacity, UsedBytes: used}
	}
	for _, c := range []struct {
		what           string
		stores         []*dozov1.NodeStore
		used, capacity uint64
	}{
		{"none", nil, 0, 0},
		{"two on file systems of their own", []*dozov1.NodeStore{store(1, 100, 100, 5), store(2, 100, 100, 6)}, 11, 200},
		{"two on one", []*dozov1.NodeStore{store(1, 100, 100, 5), store(1, 100, 100, 6)}, 11, 100},
		{"two with a bound each on one", []*dozov1.NodeStore{store(1, 100, 30, 5), store(1, 100, 40, 6)}, 11, 70},
		{"one with a bound and one without", []*dozov1.NodeStore{store(1, 100, 30, 5), store(1, 100, 100, 6)}, 11, 100},
		{"three, two on one", []*dozov1.NodeStore{store(1, 100, 100, 1), store(2, 50, 50, 1), store(1, 100, 100, 1)}, 3, 150},
		{"not known", []*dozov1.NodeStore{store(0, 0, 100, 0), store(0, 0, 100, 0)}, 0, 200},
	} {
		if used, capacity := nodeSpace(c.stores); used != c.used || capacity != c.capacity {
			t.Errorf("%s: %d of %d; want %d of %d", c.what, used, capacity, c.used, c.capacity)
		}
	}
}
