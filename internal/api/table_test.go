package api

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"dozo/internal/api/dozov1"
)

// eachMethod walks the methods of all services.
func eachMethod(f func(procedure string, m protoreflect.MethodDescriptor)) {
	files := []protoreflect.FileDescriptor{dozov1.File_dozo_v1_volume_proto, dozov1.File_dozo_v1_host_proto, dozov1.File_dozo_v1_session_proto,
		dozov1.File_dozo_v1_node_proto, dozov1.File_dozo_v1_store_proto, dozov1.File_dozo_v1_site_proto, dozov1.File_dozo_v1_cluster_proto, dozov1.File_dozo_v1_control_proto, dozov1.File_dozo_v1_fork_proto, dozov1.File_dozo_v1_reservation_proto}
	for _, file := range files {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				f("/"+string(s.FullName())+"/"+string(m.Name()), m)
			}
		}
	}
}

func TestEveryMethodHasAPermissionAndRules(t *testing.T) {
	seen := map[string]bool{}
	eachMethod(func(procedure string, m protoreflect.MethodDescriptor) {
		seen[procedure] = true
		p, ok := methods[procedure]
		if !ok {
			t.Errorf("%s: nobody may call it", procedure)
			return
		}
		kinds := 0
		for _, is := range []bool{p.need.IsUser(), p.public, p.node} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("%s: %+v says not exactly one thing", procedure, p)
		}
		mt, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
		if err != nil {
			t.Fatal(err)
		}
		req := mt.New().Interface()
		if err := validate(req); err != nil && strings.Contains(err.Error(), "no rules") {
			t.Errorf("%s: %v", procedure, err)
		}
		if p.action != "" && procedure != "/dozo.v1.NodeService/Renew" && auditObject(req) == "" {
			t.Errorf("%s: the audit log would not say on what", procedure)
		}
	})
	for procedure := range methods {
		if !seen[procedure] {
			t.Errorf("%s: there is no such method", procedure)
		}
	}
}

func TestEverySentinelHasACodeAndAReason(t *testing.T) {
	reasons := map[string]connect.Code{}
	for _, c := range errorTable {
		err := toConnect(fmt.Errorf("try something on x: %w", c.is), "s1n1")
		if err.Code() != c.code || Reason(err) != c.reason || !strings.Contains(err.Message(), "try something on x") {
			t.Errorf("%v: %v, %s", c.is, err, Reason(err))
		}
		if old, ok := reasons[c.reason]; ok && old != c.code {
			t.Errorf("%s has two codes", c.reason)
		}
		reasons[c.reason] = c.code
	}
	if err := toConnect(fmt.Errorf("disk on fire"), "s1n1"); err.Code() != connect.CodeInternal || Reason(err) != reasonInternal {
		t.Errorf("unknown error: %v", err)
	}
}

func TestReferenceIsComplete(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/api.md")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"`" + reasonInternal + "`", "`/healthz`", "`/metrics`", OnBehalfHeader}
	for _, c := range errorTable {
		want = append(want, "`"+c.reason+"` | `"+c.code.String()+"`")
	}
	eachMethod(func(_ string, m protoreflect.MethodDescriptor) {
		want = append(want, string(m.Name())+"`")
	})
	for _, w := range want {
		if !strings.Contains(string(text), w) {
			t.Errorf("docs/reference/api.md has no %s", w)
		}
	}
}

func TestValidation(t *testing.T) {
	for text, want := range map[string]string{
		`{"name":"web1","size_bytes":4096}`:                                          "",
		`{"name":"","size_bytes":4096}`:                                              "1 to 63 letters",
		`{"name":"../x","size_bytes":4096}`:                                          "1 to 63 letters",
		`{"name":"0123456789abcdef0123456789abcdef","size_bytes":4096}`:              "look like an ID",
		`{"name":"a","size_bytes":0}`:                                                "want a size",
		`{"name":"a","size_bytes":4097}`:                                             "8192 would do",
		`{"name":"a","size_bytes":"18446744073709547520"}`:                           "1 PiB",
		`{"name":"a","size_bytes":4096,"durability":"never"}`:                        "replicated or sync",
		`{"name":"a","size_bytes":4096,"block_size":520}`:                            "512 or 4096",
		`{"name":"a","size_bytes":4096,"partition":"x"}`:                             "continue or stop",
		`{"name":"a","size_bytes":4096,"labels":{"?":"x"}}`:                          "label",
		`{"name":"a","size_bytes":4096,"tenant":"a b","hosts":["!"],"at_site":"\n"}`: "tenant",
	} {
		var m dozov1.CreateVolumeRequest
		if err := protojson.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		err := validate(&m)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
		if err != nil && toConnect(err, "").Code() != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", text, toConnect(err, "").Code())
		}
	}
	m := &dozov1.CreateVolumeRequest{Name: "a", SizeBytes: 4096}
	if err := validate(m); err != nil || m.GetTenant() != "default" || m.GetDurability() != "replicated" || m.GetBlockSize() != 512 || m.GetPartition() != "continue" {
		t.Errorf("defaults: %v, %v", m, err)
	}
}

// A program that is newer than the node may ask for what the node does not know, such as a dry run of something that had none: in no
// request may that pass for one without it. JSON is refused by its codec.
func TestAFieldThatIsNotKnownIsRefused(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 1999, protowire.VarintType), 1)
	eachMethod(func(procedure string, m protoreflect.MethodDescriptor) {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
		if err != nil {
			t.Fatal(err)
		}
		req := mt.New().Interface()
		if err := proto.Unmarshal(unknown, req); err != nil {
			t.Fatal(err)
		}
		if err := validate(req); err == nil || toConnect(err, "").Code() != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "1999") {
			t.Errorf("%s: %v", procedure, err)
		}
	})
	within := &dozov1.CreateVolumesRequest{Names: []string{"a"}, Like: &dozov1.CreateVolumeRequest{SizeBytes: 4096}}
	if err := validate(within); err != nil {
		t.Fatal(err)
	}
	within.Like.ProtoReflect().SetUnknown(unknown)
	if err := validate(within); err == nil || !strings.Contains(err.Error(), "1999") {
		t.Errorf("within another message: %v", err)
	}
}

// FuzzRequests feeds hostile JSON to the decoder and the rules of every request.
func FuzzRequests(f *testing.F) {
	var kinds []protoreflect.MessageType
	eachMethod(func(_ string, m protoreflect.MethodDescriptor) {
		if mt, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName()); err == nil {
			kinds = append(kinds, mt)
		}
	})
	for i := range kinds {
		f.Add(i, []byte(`{}`))
	}
	f.Add(0, []byte(`{"name":"web1","size_bytes":"4096","labels":{"a":"b"}}`))
	f.Add(8, []byte(`{"name":"h","initiator_names":["iqn.2026-01.x:a"],"cidrs":["10.0.0.0/8"],"chap":{"in_user":"a","in_secret":"123456789012"}}`))
	f.Fuzz(func(t *testing.T, kind int, text []byte) {
		if kind < 0 {
			return
		}
		m := kinds[kind%len(kinds)].New().Interface()
		if (jsonCodec{"json"}).Unmarshal(text, m) != nil {
			return
		}
		if validate(m) != nil {
			return
		}
		// What was taken once, with its defaults, is taken again.
		again := proto.Clone(m)
		if err := validate(again); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%v: taken, then %v, %v", m, again, err)
		}
		auditObject(m)
	})
}
