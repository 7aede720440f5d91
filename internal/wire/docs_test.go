package wire

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestEveryTypeAndCodeIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	for _, typ := range Types() {
		if row := fmt.Sprintf("\n| %d %s |", typ, typ); !strings.Contains(doc, row) {
			t.Errorf("docs/wire.md has no row for %d %s", typ, typ)
		}
	}
	for c := CodeFenced; c <= CodeSanitizing; c++ {
		if cell := fmt.Sprintf("| %d | %s |", c, c); !strings.Contains(doc, cell) {
			t.Errorf("docs/wire.md does not have code %d, %s", c, c)
		}
	}
	for c := ClassControl; c <= ClassMax; c++ {
		if cell := fmt.Sprintf("| %d | %s |", c, c); !strings.Contains(doc, cell) {
			t.Errorf("docs/wire.md does not have class %d, %s", c, c)
		}
	}
	_, versions, _ := strings.Cut(doc, "\n### Versions\n")
	versions, _, _ = strings.Cut(versions, "\n\nMessages are encoded")
	for v := VersionMin; v <= VersionMax; v++ {
		if row := fmt.Sprintf("\n| %d | ", v); !strings.Contains(versions, row) {
			t.Errorf("docs/wire.md has no line of history for version %d", v)
		}
	}
	for what, size := range map[string]int{"epoch": epochSize, "position": positionSize, "segment": segmentSize, "epoch-start": epochStartSize,
		"replica": replicaSize, "journal-epoch": journalEpochSize, "told": toldSize} {
		if cell := fmt.Sprintf("| %s | %d |", what, size); !strings.Contains(doc, cell) {
			t.Errorf("docs/wire.md: size of %s is %d", what, size)
		}
	}
}
