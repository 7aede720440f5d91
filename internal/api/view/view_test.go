package view

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api/dozov1"
)

func sample() *dozov1.Volume {
	return &dozov1.Volume{Id: "ab", Name: "web1", SizeBytes: 1<<63 + 1, Labels: map[string]string{"b": "2", "a": "yes"}, Created: timestamppb.New(time.Unix(0, 0))}
}

func TestJSONHasEveryFieldAndExactNumbers(t *testing.T) {
	var b bytes.Buffer
	if err := JSON.Message(&b, sample()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"size_bytes": 9223372036854775809`, `"created": "1970-01-01T00:00:00Z"`, `"hosts": []`, `"owner": ""`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, &b)
		}
	}
	if strings.Index(b.String(), `"a"`) > strings.Index(b.String(), `"b"`) {
		t.Error("labels are not in order")
	}
	var m map[string]any
	if err := json.Unmarshal(b.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if n := (&dozov1.Volume{}).ProtoReflect().Descriptor().Fields().Len(); len(m) != n {
		t.Errorf("%d fields; the message has %d", len(m), n)
	}
}

func TestYAMLKeepsTypes(t *testing.T) {
	var b bytes.Buffer
	if err := List(YAML, &b, []*dozov1.Volume{sample()}); err != nil {
		t.Fatal(err)
	}
	var l []struct {
		Size   uint64            `yaml:"size_bytes"`
		Labels map[string]string `yaml:"labels"`
	}
	if err := yaml.Unmarshal(b.Bytes(), &l); err != nil || len(l) != 1 || l[0].Size != 1<<63+1 || l[0].Labels["a"] != "yes" {
		t.Errorf("%v, %v from\n%s", l, err, &b)
	}
}

func TestAbsentMessagesAreNull(t *testing.T) {
	var b bytes.Buffer
	if err := JSON.Line(&b, &dozov1.GetVolumeResponse{}); err != nil || b.String() != `{"volume":null,"placement":null}`+"\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestValueAsYAML(t *testing.T) {
	var b bytes.Buffer
	v := []struct {
		B string `json:"b"`
		A []int  `json:"a"`
	}{{"1", []int{2}}}
	if err := YAML.Value(&b, v); err != nil || b.String() != "- b: \"1\"\n  a:\n    - 2\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestGrid(t *testing.T) {
	g := NewGrid("NAME", "SIZE")
	g.Row("a\x1b[2J", "1 GiB")
	g.Row("größer", "")
	var b bytes.Buffer
	if err := g.Write(&b); err != nil || b.String() != "NAME    SIZE\na?[2J   1 GiB\ngrößer  -\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	if err := Facts(&b, "Name", "x", "Nothing", "", "Owner", "s1n1"); err != nil || b.String() != "Name   x\nOwner  s1n1\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}
