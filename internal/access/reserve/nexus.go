package reserve

import "fmt"

// NexusID names an I_T nexus: one initiator port (for iSCSI the initiator's name and the ISID of the session)
// and one target port (for iSCSI the portal group of an access server). It is comparable and fit to be a
// map key.
type NexusID struct {
	Initiator string  // iSCSI name of the initiator, normalized
	ISID      [6]byte // the initiator's session identifier, zero for protocols without one
	Port      uint16  // relative target port identifier = target portal group tag, never 0 in a session
}

// InitiatorPort is the name of the SCSI initiator port as RFC 7143 4.4.2 (name construction) forms it.
func (n NexusID) InitiatorPort() string { return fmt.Sprintf("%s,i,0x%x", n.Initiator, n.ISID) }

func (n NexusID) String() string { return fmt.Sprintf("%s,t,%d", n.InitiatorPort(), n.Port) }
