package main

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// ttl makes a message of a flag; 0 was not given.
func ttl(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
