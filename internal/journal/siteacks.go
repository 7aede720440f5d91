package journal

import (
	"slices"

	"dozo/internal/ident"
	"dozo/internal/mutant"
)

// SiteAcks decides what may be acknowledged, and shown to readers, of a journal that also needs other sites for that (R11:
// --ack=site:K). A record is held once K of the other sites hold it, with everything before it; it is synced once K hold it
// on stable storage. Both only ever grow in an epoch: a site that lost something since was counted when it had it, and what
// is answered later is counted anew.
//
// Like Writer it does no I/O. The owner tells it how far the sites are, and asks Held before each answer.
type SiteAcks struct {
	need   int
	sites  []siteAck
	held   ident.Seq
	synced ident.Seq
}

type siteAck struct {
	site   ident.SiteID
	mark   ident.Seq // the site holds everything up to here
	stable ident.Seq // and stably to here
	credit ident.Seq // and it held everything up to here when its owner was given up
}

// NewSiteAcks begins with sites of which nothing is known.
func NewSiteAcks(sites []ident.SiteID) *SiteAcks {
	a := &SiteAcks{}
	for _, s := range sites {
		a.sites = append(a.sites, siteAck{site: s})
	}
	return a
}

// allSeqs is behind every record.
const allSeqs = ident.Seq(1<<64 - 1)

// Need is K; 0: no other site is waited for.
func (a *SiteAcks) Need() int { return a.need }

// SetNeed changes K. What fewer sites held may be held no more by so many: nobody is told so who has been told otherwise.
func (a *SiteAcks) SetNeed(k int) {
	if k > a.need {
		a.held, a.synced = 0, 0
	}
	a.need = k
	a.count()
}

// Credit says that a site held everything up to seq, on two servers, when its owner was given up, though nobody can ask it now.
func (a *SiteAcks) Credit(site ident.SiteID, seq ident.Seq) {
	for i := range a.sites {
		if s := &a.sites[i]; s.site == site {
			s.credit = max(s.credit, seq)
		}
	}
	a.count()
}

// Mark says how far a site is now. It may be less than it was.
func (a *SiteAcks) Mark(site ident.SiteID, mark, stable ident.Seq) {
	for i := range a.sites {
		if s := &a.sites[i]; s.site == site {
			s.mark, s.stable = mark, min(mark, stable)
		}
	}
	a.count()
}

// Held is the record up to which everything may be acknowledged and read.
func (a *SiteAcks) Held() ident.Seq {
	if a.need == 0 || mutant.On(mutant.R11Acks) {
		return allSeqs
	}
	return a.held
}

// Synced is the record up to which flushes may be answered.
func (a *SiteAcks) Synced() ident.Seq {
	if a.need == 0 || mutant.On(mutant.R11Acks) {
		return allSeqs
	}
	return a.synced
}

func (a *SiteAcks) count() {
	if a.need == 0 {
		return
	}
	a.held = max(a.held, a.most(func(s *siteAck) ident.Seq { return max(s.mark, s.credit) }))
	a.synced = max(a.synced, a.most(func(s *siteAck) ident.Seq { return s.stable }))
}

// most is how far need sites are.
func (a *SiteAcks) most(of func(*siteAck) ident.Seq) ident.Seq {
	if a.need > len(a.sites) {
		return 0
	}
	var few [8]ident.Seq
	list := few[:0]
	for i := range a.sites {
		list = append(list, of(&a.sites[i]))
	}
	slices.Sort(list)
	return list[len(list)-a.need]
}

// HeardSites is how many of a journal's n sites a takeover has to hear whole so that nothing which was acknowledged with K
// others is left behind: each such record is at K+1 sites, and of those one at least is among any n-K (R11). And an owner that
// is not heard can not get K others to hold anything once n-K sites have been fenced.
func HeardSites(n, k int) int {
	if mutant.On(mutant.R11Sites) {
		return 1
	}
	return n - k
}
