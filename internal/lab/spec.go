package lab

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"dozo/internal/lab/wan"
)

// DefaultName is the lab that commands mean when they name none.
const DefaultName = "lab"

// siteNames are given to sites that were only counted.
var siteNames = []string{"east", "west", "north", "south"}

// Addresses of a lab: 10.77.SITE.N and fd77:0:0:SITE::N, which no other network sees.
const (
	addressesMax = 200
	bits4, bits6 = 24, 64
)

// Names end up in names of namespaces and files; a dash would make prefixes ambiguous.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

// Spec is what a lab looks like; it stays as long as the lab does.
type Spec struct {
	Name  string     `json:"name"`
	Sites []SiteSpec `json:"sites"`
	// Nodes is how many dozo nodes each site has, Dir where their data are.
	Nodes int    `json:"nodes,omitempty"`
	Dir   string `json:"dir,omitempty"`
}

// SiteSpec is one site.
type SiteSpec struct {
	Name      string       `json:"name"`
	NetNS     string       `json:"netns"` // as ip netns knows it
	Addresses []netip.Addr `json:"addresses"`
}

// ParseSites takes a number of sites, or their names separated by commas.
func ParseSites(text string) ([]string, error) {
	var n int
	if _, err := fmt.Sscanf(text, "%d", &n); err == nil && fmt.Sprint(n) == text {
		if n < 1 || n > wan.SitesMax {
			return nil, fmt.Errorf("%w: %d sites: want 1 to %d", ErrUsage, n, wan.SitesMax)
		}
		var out []string
		for i := range n {
			if i < len(siteNames) {
				out = append(out, siteNames[i])
			} else {
				out = append(out, fmt.Sprintf("site%d", i+1))
			}
		}
		return out, nil
	}
	return strings.Split(text, ","), nil
}

// NewSpec plans a lab with a number of addresses at each site.
func NewSpec(name string, sites []string, addresses int) (*Spec, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("%w: lab %q: want a small letter, then up to 19 small letters and digits", ErrUsage, name)
	}
	if len(sites) < 1 || len(sites) > wan.SitesMax {
		return nil, fmt.Errorf("%w: %d sites: want 1 to %d", ErrUsage, len(sites), wan.SitesMax)
	}
	if addresses < 1 || addresses > addressesMax {
		return nil, fmt.Errorf("%w: %d addresses: want 1 to %d", ErrUsage, addresses, addressesMax)
	}
	s := &Spec{Name: name}
	for i, site := range sites {
		if !nameForm.MatchString(site) || site == wordAll {
			return nil, fmt.Errorf("%w: site %q: want a small letter, then up to 19 small letters and digits, and not %q", ErrUsage, site, wordAll)
		}
		if slices.Contains(sites[:i], site) {
			return nil, fmt.Errorf("%w: two sites %s", ErrUsage, site)
		}
		ss := SiteSpec{Name: site, NetNS: netnsPrefix(name) + site}
		for _, v6 := range []bool{false, true} {
			for j := 1; j <= addresses; j++ {
				if v6 {
					ss.Addresses = append(ss.Addresses, addr6(i+1, j))
				} else {
					ss.Addresses = append(ss.Addresses, addr4(i+1, j))
				}
			}
		}
		s.Sites = append(s.Sites, ss)
	}
	return s, nil
}

func addr4(site, n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, byte(site), byte(n)}) }

func addr6(site, n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: byte(site), 15: byte(n)})
}

// prefixes are all that is routed to a site: guests may have addresses of it that the namespace has not.
func (s SiteSpec) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range s.Addresses {
		bits := bits4
		if a.Is6() {
			bits = bits6
		}
		if p := netip.PrefixFrom(a, bits).Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// SiteNames gives the sites in order.
func (s *Spec) SiteNames() []string {
	var out []string
	for _, x := range s.Sites {
		out = append(out, x.Name)
	}
	return out
}

// Site finds a site.
func (s *Spec) Site(name string) (SiteSpec, error) {
	for _, x := range s.Sites {
		if x.Name == name {
			return x, nil
		}
	}
	return SiteSpec{}, fmt.Errorf("%w: no site %q in lab %s (there are %s)", ErrUsage, name, s.Name, strings.Join(s.SiteNames(), ", "))
}

func netnsPrefix(lab string) string { return "dozolab-" + lab + "-" }
