package initiator

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// URL names a logical unit: iscsi://[user%secret@]host[:port]/target-name/lun, as libiscsi and qemu write it.
type URL struct {
	Portal       string // host:port
	Target       string
	LUN          int
	User, Secret string
}

// ErrURL is text that is no URL of a logical unit.
var ErrURL = errors.New("not an iscsi:// URL")

// ParseURL reads an iscsi URL. A target without a LUN means LUN 0; no path means a portal for discovery.
func ParseURL(s string) (URL, error) {
	rest, ok := strings.CutPrefix(s, "iscsi://")
	if !ok {
		return URL{}, fmt.Errorf("%w: want iscsi://HOST[:PORT]/TARGET/LUN", ErrURL)
	}
	var u URL
	// Errors name s without the part that may be a secret.
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		s = "iscsi://...@" + rest[i+1:]
	}
	host, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		cred := host[:i]
		host = host[i+1:]
		// libiscsi parts user and secret by a per cent sign; a colon is accepted as well.
		sep := strings.IndexAny(cred, "%:")
		if sep < 0 {
			return URL{}, fmt.Errorf("iscsi URL: no secret after the user's name")
		}
		u.User, u.Secret = cred[:sep], cred[sep+1:]
	}
	if host == "" {
		return URL{}, fmt.Errorf("iscsi URL %q: no host", s)
	}
	u.Portal = withPort(host)
	if path == "" {
		return u, nil
	}
	path, _, _ = strings.Cut(path, "?")
	name, lun, found := strings.Cut(path, "/")
	if name == "" {
		return URL{}, fmt.Errorf("iscsi URL %q: no target name", s)
	}
	target, err := url.PathUnescape(name)
	if err != nil {
		return URL{}, fmt.Errorf("iscsi URL %q: %w", s, err)
	}
	u.Target = target
	if found && lun != "" {
		n, err := strconv.Atoi(lun)
		if err != nil || n < 0 || n > 16383 {
			return URL{}, fmt.Errorf("iscsi URL %q: LUN %q is not a number from 0 to 16383", s, lun)
		}
		u.LUN = n
	}
	return u, nil
}

// Config is a session's configuration for the unit; the caller adds to it.
func (u URL) Config() Config {
	return Config{Portal: u.Portal, Target: u.Target, CHAP: CHAP{User: u.User, Secret: u.Secret}}
}

// String is the URL without the secret.
func (u URL) String() string {
	cred := ""
	if u.User != "" {
		cred = u.User + "@"
	}
	return fmt.Sprintf("iscsi://%s%s/%s/%d", cred, u.Portal, u.Target, u.LUN)
}
