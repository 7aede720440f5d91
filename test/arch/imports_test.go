package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// allowed lists, for each package below internal, what it may import of this module (without dozo/internal/). A
// package imports only what stands above it in this list, so imports point downwards and have no cycle; a new
// package needs a line here, which is the moment to think about where it belongs.
var allowed = []struct {
	pkg  string
	uses []string
}{
	// No knowledge of the rest.
	{"ident", nil},
	{"size", nil},
	{"version", nil},
	{"uring", nil},
	{"vfs", []string{"uring"}},
	{"nowait", nil},
	{"mutant", nil},
	{"sysmon", nil},
	{"cpulatency", nil},
	{"pki", nil},
	{"config", []string{"ident", "size"}},
	// The words between nodes, the rules of the history, the state machine on top, the disk below. Journal knows
	// stores by an interface, volume knows the journal's records and nothing of who keeps them.
	{"wire", []string{"ident"}},
	{"journal", []string{"ident", "mutant", "wire"}},
	{"volume", []string{"ident", "journal", "mutant"}},
	{"trouble", []string{"ident"}},
	{"core", []string{"ident", "journal", "mutant", "vfs", "wire"}},
	{"peer", []string{"ident", "journal", "nowait", "wire"}},
	{"control", []string{"ident", "mutant", "pki", "vfs"}},
	// Protocols: reserve knows no protocol, scsi no network and no iSCSI, iscsi nothing of what is behind a target.
	{"access/reserve", []string{"ident"}},
	{"access/scsi", []string{"access/reserve", "ident"}},
	{"access/iscsi/proof", []string{"access/scsi", "mutant"}},
	{"access/iscsi", []string{"access/iscsi/proof", "access/reserve", "access/scsi", "mutant", "nowait"}},
	{"access/iscsi/iscsitest", []string{"access/iscsi", "access/reserve", "access/scsi", "ident"}},
	{"access/isns", nil},
	{"access", []string{"access/reserve", "control", "ident", "journal", "mutant", "volume", "wire"}},
	{"settle", []string{"control", "core", "ident", "journal", "volume", "wire"}},
	{"access/export", []string{"access", "access/iscsi", "access/reserve", "access/scsi", "control", "ident", "journal", "wire"}},
	// The initiator shares no code with the target: see its doc.go.
	{"initiator", nil},
	{"initiator/tgttest", nil},
	{"initiator/history", []string{"initiator"}},
	{"initiator/bench", []string{"initiator", "initiator/history", "size"}},
	// The API and what is made of it.
	{"api/dozov1", nil},
	{"api/dozov1/dozov1connect", []string{"api/dozov1"}},
	{"api/view", nil},
	{"api", []string{"api/dozov1", "api/dozov1/dozov1connect", "control", "ident", "pki"}},
	{"api/apitest", []string{"api", "api/dozov1", "control", "ident", "pki"}},
	{"inspect", []string{"access/reserve", "core", "journal", "vfs", "volume"}},
	{"up", []string{"api", "api/dozov1", "api/view", "config", "ident", "pki", "sysmon"}},
	// What prints files without a node.
	{"inspect", []string{"access/reserve", "core", "journal", "vfs", "volume"}},
	// Several sites on one machine with distance between them.
	{"lab/wan", nil},
	{"lab/router", []string{"lab/wan"}},
	{"lab", []string{"api", "config", "ident", "lab/router", "lab/wan", "pki", "size", "up"}},
	// Virtual machines at those sites: the agent is what runs inside.
	{"guest/records", nil},
	{"guest/agent", []string{"guest/records"}},
	{"guest", []string{"guest/agent", "guest/records", "lab"}},
	{"guest/migrate", []string{"guest", "guest/records", "initiator"}},
	// Whole clusters in one process: nothing of the product may know it.
	{"sim/batch", nil},
	{"sim", []string{"access", "access/iscsi/proof", "access/reserve", "access/scsi", "control", "core", "ident", "journal", "mutant", "settle", "vfs", "wire"}},
	// node wires everything; nothing below may know it.
	{"node", []string{"*"}},
}

// Of other modules: the control store's library and the database stay in their packages, and what decides has no
// network and no clock of its own.
var forbidden = map[string][]string{
	"ident": {"net", "os", "time"}, "wire": {"net", "os"}, "journal": {"net", "os"}, "volume": {"net", "os"},
	"access/scsi": {"net"}, "access/reserve": {"net"},
}

// onlyIn says which package alone may import a module.
var onlyIn = map[string]string{
	"go.etcd.io/etcd": "control",
}

type listed struct {
	ImportPath, Doc string
	Imports         []string
	GoFiles         []string
}

func list(t *testing.T) []listed {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "list", "-e", "-json=ImportPath,Doc,Imports,GoFiles", "./...")
	c.Dir, c.Stderr = root, os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

const prefix = "dozo/internal/"

func TestImportsPointDownwards(t *testing.T) {
	place := map[string]int{}
	uses := map[string][]string{}
	for i, a := range allowed {
		place[a.pkg], uses[a.pkg] = i, a.uses
		for _, u := range a.uses {
			if at, ok := place[u]; u != "*" && (!ok || at >= i) {
				t.Errorf("the table lets %s import %s, which does not stand above it", a.pkg, u)
			}
		}
	}
	for _, p := range list(t) {
		name, internal := strings.CutPrefix(p.ImportPath, prefix)
		if internal {
			if _, ok := place[name]; !ok {
				t.Errorf("package %s has no line in the table of imports_test.go", p.ImportPath)
				continue
			}
		}
		for _, imp := range p.Imports {
			for module, at := range onlyIn {
				if strings.HasPrefix(imp, module) && name != at {
					t.Errorf("%s imports %s: only internal/%s may", p.ImportPath, imp, at)
				}
			}
			if strings.HasPrefix(imp, "dozo/cmd/") {
				t.Errorf("%s imports %s: commands are imported by nobody", p.ImportPath, imp)
			}
			if !internal {
				continue
			}
			if slices.Contains(forbidden[name], imp) {
				t.Errorf("internal/%s imports %s", name, imp)
			}
			if u, ours := strings.CutPrefix(imp, prefix); ours && !slices.Contains(uses[name], u) && !slices.Contains(uses[name], "*") {
				t.Errorf("internal/%s imports internal/%s: not in the table of imports_test.go", name, u)
			}
		}
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 20 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
