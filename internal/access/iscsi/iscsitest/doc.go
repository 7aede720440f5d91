// Package iscsitest is an iSCSI target on disks in memory, for tests of everything that talks iSCSI: it needs
// no cluster and forgets its data.
//
// Start at Start. A Disk is safe for concurrent use and completes every call before it returns, unless Delay
// or Hold say otherwise; its knobs make it fail, hang or be full.
package iscsitest
