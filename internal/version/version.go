// Package version says which dozo this is. Start at Get. The release is set by the Makefile when it builds
// (-ldflags -X); the revision comes from the Go toolchain's build information, where it was built in a work tree.
package version

import (
	"runtime"
	"runtime/debug"
)

// release is set at build time: -ldflags "-X dozo/internal/version.release=1.2.3".
var release = "development"

// Info describes the program.
type Info struct {
	Version   string
	Revision  string // of the source; ends in + where the work tree had changes
	GoVersion string
	Platform  string
}

// Get describes this program.
func Get() Info {
	i := Info{Version: release, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	modified := false
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			i.Revision = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if i.Revision != "" && modified {
		i.Revision += "+"
	}
	return i
}
