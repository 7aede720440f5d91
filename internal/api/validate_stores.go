package api

import "dozo/internal/api/dozov1"

// validateLoss takes stores as all calls of StoreService do, and nodes.
func validateLoss(m *dozov1.StoreLossRequest) error {
	if n := len(m.GetStores()); n == 0 || n > listMax {
		return invalid("stores has %d entries: want 1 to %d stores or nodes", n, listMax)
	}
	for _, s := range m.GetStores() {
		if err := checkText("stores", s); err != nil {
			return err
		}
	}
	return nil
}

// checkStores takes a list of stores or nodes.
func checkStores(list []string) error {
	if len(list) == 0 {
		return invalid("stores: name at least one store or node")
	}
	for _, s := range list {
		if err := checkName("stores", s); err != nil {
			return err
		}
	}
	return nil
}
