package lab

func (l *Lab) nodeStatus([]Process) []NodeStatus { return []NodeStatus{} }

// Env is what commands at a site are given besides the environment.
func (l *Lab) Env() []string { return nil }
