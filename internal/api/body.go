package api

import (
	"context"
	"net/http"
	"time"
)

// bodyTimeout bounds how long the request of a call may take to arrive. It has 1 MiB at most; a stranger who sends it a byte at a time
// would keep one of the listener's connections for ever.
const bodyTimeout = 30 * time.Second

type bodyKey struct{}

// hasten has requests arrive in time. What follows a request is not bounded: streams last.
func hasten(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if r.ContentLength == 0 || c.SetReadDeadline(time.Now().Add(bodyTimeout)) != nil {
			next.ServeHTTP(w, r) // a profile, say; or it is a writer of another server's
			return
		}
		arrived := func() { _ = c.SetReadDeadline(time.Time{}) }
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), bodyKey{}, arrived)))
	})
}

// arrived says that the request of a call is here.
func arrived(ctx context.Context) {
	if f, ok := ctx.Value(bodyKey{}).(func()); ok {
		f()
	}
}
