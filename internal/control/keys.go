package control

import (
	"fmt"
	"strings"
	"time"

	"dozo/internal/ident"
)

// The keys, all below a prefix that only an external etcd that is shared would change. What stands in <> is
// in the text form of its type. Index keys hold the name of what they point to, and exist so that a
// transaction can say "this name is free".
//
//	cluster                         Cluster
//	seq/site, seq/tpgt              the last number given out
//	sites/<site>                    Site
//	nodes/<node>                    Node
//	hosts/<tenant>/<name>           Host, with its secrets
//	volumes/<journal>               VolumeSpec, tombstones too
//	journals/<journal>              JournalState: owner, epoch, ensembles
//	names/site/<name>               index: site ID
//	names/volume/<tenant>/<name>    index: journal ID
//	names/initiator/<iqn>           index: tenant/host
//	stores/<store>                  index: node
//	lost/<store>                    LostStore
//	levels/<node>                   nodeLevel: what of the stored form the node knows
//	alive/<node>                    leased; there while the node announces itself
//	holds/<node>                    leased; there while the node may own volumes that stop when cut off
//	revoked/<serial>                pki.Revocation
//	jointokens/<hash>               pki.JoinTokenRecord
//	apitokens/<name>                pki.APITokenRecord
//	events/<time>-<change>          Event; order is by revision, the time only spreads the keys
//	restored                        Restoration: the control store was restored or rebuilt
//	discovery                       CHAP that initiators prove for discovery, with its secrets
//	answers/<store>/<part>          []HeldJournal, while a restoration is settled
//	offers/<journal>                VolumeSpec that a node remembers and the restored control store lacks
//	answered/<store>                Answer: all parts of the store's answer are there
const (
	// DefaultPrefix is before all keys.
	DefaultPrefix = "/dozo/"

	keyCluster  = "cluster"
	keySeqSite  = "seq/site"
	keySeqTPGT  = "seq/tpgt"
	dirSites    = "sites/"
	dirNodes    = "nodes/"
	dirHosts    = "hosts/"
	dirVolumes  = "volumes/"
	dirJournals = "journals/"
	dirNames    = "names/"
	dirStores   = "stores/"
	dirLost     = "lost/"
	dirAlive    = "alive/"
	dirHolds    = "holds/"
	dirRevoked  = "revoked/"
	dirJoin     = "jointokens/"
	dirAPI      = "apitokens/"
	dirEvents   = "events/"
	keyRestored = "restored"
	keyDiscover = "discovery"
	dirAnswers  = "answers/"
	dirAnswered = "answered/"
	dirOffers   = "offers/"
	dirLevels   = "levels/"
)

func keySite(id ident.SiteID) string           { return fmt.Sprintf("%s%05d", dirSites, id) }
func keySiteName(name string) string           { return dirNames + "site/" + name }
func keyNode(name ident.NodeName) string       { return dirNodes + string(name) }
func keyStore(id ident.StoreID) string         { return dirStores + id.String() }
func keyLost(id ident.StoreID) string          { return dirLost + id.String() }
func keyHost(tenant, name string) string       { return dirHosts + tenant + "/" + name }
func keyInitiator(iqn string) string           { return dirNames + "initiator/" + iqn }
func keyVolume(id ident.JournalID) string      { return dirVolumes + id.String() }
func keyVolumeName(tenant, name string) string { return dirNames + "volume/" + tenant + "/" + name }
func keyJournal(id ident.JournalID) string     { return dirJournals + id.String() }
func keyAlive(name ident.NodeName) string      { return dirAlive + string(name) }
func keyHold(name ident.NodeName) string       { return dirHolds + string(name) }
func keyRevoked(serial string) string          { return dirRevoked + serial }
func keyJoin(hash string) string               { return dirJoin + hash }
func keyAPI(name string) string                { return dirAPI + name }
func keyEvent(at time.Time, changeID string) string {
	return fmt.Sprintf("%s%020d-%s", dirEvents, at.UnixNano(), changeID)
}

// journalOfKey is the inverse of keyJournal and keyVolume.
func journalOfKey(dir, key string) (ident.JournalID, error) {
	return ident.ParseJournalID(strings.TrimPrefix(key, dir))
}
