package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"dozo/internal/lab/router"
	"dozo/internal/lab/wan"
)

// Words of commands that no site can be called.
const (
	wordAll    = "all"
	wordOneWay = "one-way" // has a dash
)

// Command takes one change as people write it, and says what it means for a lab of these sites:
//
//	set A B [one-way] KEY=VALUE...    the path between two sites, or only from A to B
//	set all KEY=VALUE...              all paths
//	set A KEY=VALUE...                a site's access link
//	partition A [B [one-way]]         cut A from B, or from all others
//	heal [A [B [one-way]]]            undo that; without sites, everywhere
func Command(sites, words []string) ([]router.Change, error) {
	if len(words) == 0 {
		return nil, fmt.Errorf("%w: no command: want set, partition or heal", ErrUsage)
	}
	verb := words[0]
	var named, settings []string
	oneWay := false
	for _, w := range words[1:] {
		switch {
		case w == wordOneWay:
			oneWay = true
		case strings.Contains(w, "="):
			settings = append(settings, w)
		case w == wordAll || slices.Contains(sites, w):
			if len(settings) > 0 {
				return nil, fmt.Errorf("%w: site %s after a setting", ErrUsage, w)
			}
			named = append(named, w)
		default:
			return nil, fmt.Errorf("%w: %q is no site (there are %s) and no KEY=VALUE", ErrUsage, w, strings.Join(sites, ", "))
		}
	}
	if oneWay && len(named) != 2 {
		return nil, fmt.Errorf("%w: one direction is from one site to another: name two", ErrUsage)
	}
	switch verb {
	case "set":
		if len(settings) == 0 {
			return nil, fmt.Errorf("%w: nothing to set: want KEY=VALUE", ErrUsage)
		}
		if len(named) == 1 && named[0] != wordAll {
			return access(named[0], settings)
		}
		if len(named) == 0 {
			return nil, fmt.Errorf("%w: set what: one site, two sites, or all", ErrUsage)
		}
		p, err := pathPatch(settings, oneWay)
		if err != nil {
			return nil, err
		}
		return paths(sites, named, oneWay, p)
	case "partition", "heal":
		if len(settings) > 0 {
			return nil, fmt.Errorf("%w: %s takes no settings", ErrUsage, verb)
		}
		cut := verb == "partition"
		if len(named) == 0 {
			if cut {
				return nil, fmt.Errorf("%w: partition what: one site from all others, or two from each other", ErrUsage)
			}
			named = []string{wordAll}
		}
		return paths(sites, named, oneWay, router.Patch{Cut: &cut})
	}
	return nil, fmt.Errorf("%w: no command %q: want set, partition or heal", ErrUsage, verb)
}

// paths gives a change for each path between the named sites; one name means its paths to all others.
func paths(sites, named []string, oneWay bool, p router.Patch) ([]router.Change, error) {
	if len(named) > 2 || len(named) == 2 && (named[0] == named[1] || slices.Contains(named, wordAll)) {
		return nil, fmt.Errorf("%w: want one site, two different sites, or all", ErrUsage)
	}
	var out []router.Change
	for _, from := range sites {
		for _, to := range sites {
			match := from != to
			switch {
			case named[0] == wordAll:
			case len(named) == 1:
				match = match && (from == named[0] || to == named[0])
			default:
				match = from == named[0] && to == named[1] || !oneWay && from == named[1] && to == named[0]
			}
			if match {
				out = append(out, router.Change{Kind: router.KindPath, From: from, To: to, Patch: p})
			}
		}
	}
	return out, nil
}

// pathPatch takes the settings of a path.
func pathPatch(settings []string, oneWay bool) (router.Patch, error) {
	var p router.Patch
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		var err error
		switch key {
		case "rtt":
			if oneWay {
				return p, fmt.Errorf("%w: rtt is of both directions: give delay", ErrUsage)
			}
			var d time.Duration
			d, err = parseDelay(value)
			d /= 2
			p.Delay = &d
		case "delay":
			p.Delay, err = ref(parseDelay(value))
		case "jitter":
			p.Jitter, err = ref(parseDelay(value))
		case "reorder-by":
			p.ReorderBy, err = ref(parseDelay(value))
		case "loss":
			p.Loss, err = ref(ParseShare(value))
		case "reorder":
			p.Reorder, err = ref(ParseShare(value))
		case "rate":
			p.Rate, err = ref(ParseRate(value))
		case "buffer":
			p.Buffer, err = ref(ParseBuffer(value))
		default:
			err = fmt.Errorf("%w: no setting %q of a path: want rtt, delay, jitter, rate, buffer, loss, reorder or reorder-by", ErrUsage, key)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// access takes the settings of an access link.
func access(site string, settings []string) ([]router.Change, error) {
	up, down := router.Change{Kind: router.KindUp, Site: site}, router.Change{Kind: router.KindDown, Site: site}
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		var rate *wan.Rate
		var buffer *int
		var err error
		switch key {
		case "rate", "up", "down":
			rate, err = ref(ParseRate(value))
		case "buffer", "up-buffer", "down-buffer":
			buffer, err = ref(ParseBuffer(value))
		default:
			err = fmt.Errorf("%w: no setting %q of a site's access link: want rate, up, down, buffer, up-buffer or down-buffer", ErrUsage, key)
		}
		if err != nil {
			return nil, err
		}
		for _, side := range []struct {
			word  string
			patch *router.Patch
		}{{"up", &up.Patch}, {"down", &down.Patch}} {
			switch key {
			case "rate", side.word:
				side.patch.Rate = rate
			case "buffer", side.word + "-buffer":
				side.patch.Buffer = buffer
			}
		}
	}
	return []router.Change{up, down}, nil
}

func ref[T any](v T, err error) (*T, error) { return &v, err }
