package iscsi

// Used is how much memory the buffers of all connections have.
func (s *Server) Used() int64 { return s.budget.used.Load() }
