package iscsi

// Used is how much memory the buffers of all connections have.
func (s *Server) Used() int64 { return s.budget.used.Load() }

// Stashed is how much memory data have that came unasked, before there was memory for their commands.
func (s *Server) Stashed() int64 { return s.stashes.used.Load() }

// Outs is how much memory answers have that wait for the socket, beyond the shares of their connections.
func (s *Server) Outs() int64 { return s.outs.used.Load() }

// PerSource is how many connections one address may have of a number of them.
func PerSource(all int) int { return (&Config{ConnectionsMax: all}).perSource() }

// Lost says that a session has lost its connections, or has ended.
func (s *Server) Lost(tsih uint16) bool {
	x := s.sessionByTSIH(tsih)
	if x == nil {
		return true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.allParkedLocked()
}
