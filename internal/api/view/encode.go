package view

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Format is one of Table, JSON and YAML. It is a flag's value.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Formats are all of them.
var Formats = []string{string(Table), string(JSON), string(YAML)}

// String, Set and Type make a Format a flag.
func (f *Format) String() string { return string(*f) }

// Set takes one of Formats.
func (f *Format) Set(text string) error {
	if !slices.Contains(Formats, text) {
		return fmt.Errorf("want table, json or yaml")
	}
	*f = Format(text)
	return nil
}

// Type names the flag's type in help texts.
func (*Format) Type() string { return "format" }

// Message writes one message as JSON or YAML.
func (f Format) Message(w io.Writer, m proto.Message) error {
	return f.write(w, ofMessage(m.ProtoReflect()))
}

// Line writes one message of a stream: as JSON on one line, as YAML a document of its own.
func (f Format) Line(w io.Writer, m proto.Message) error {
	v := ofMessage(m.ProtoReflect())
	if f == YAML {
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
		return f.write(w, v)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Value writes anything else as JSON or YAML, by its json tags.
func (f Format) Value(w io.Writer, v any) error {
	if f == YAML {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		// JSON is YAML: decoded as a tree, its keys keep their order.
		var node yaml.Node
		if err := yaml.Unmarshal(b, &node); err != nil {
			return err
		}
		block(&node)
		return encodeYAML(w, &node)
	}
	return f.write(w, v)
}

// block turns the flow style of JSON into YAML's usual one.
func block(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, c := range n.Content {
		block(c)
	}
}

// List writes messages as one array.
func List[M proto.Message](f Format, w io.Writer, list []M) error {
	out := make([]any, 0, len(list))
	for _, m := range list {
		out = append(out, ofMessage(m.ProtoReflect()))
	}
	return f.write(w, out)
}

func (f Format) write(w io.Writer, v any) error {
	if f == YAML {
		return encodeYAML(w, v)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func encodeYAML(w io.Writer, v any) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return err
	}
	return e.Close()
}

// object is a mapping that keeps its order.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		v, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// MarshalYAML implements yaml.Marshaler.
func (o object) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, m := range o {
		var k, v yaml.Node
		if err := k.Encode(m.key); err != nil {
			return nil, err
		}
		if err := v.Encode(m.value); err != nil {
			return nil, err
		}
		n.Content = append(n.Content, &k, &v)
	}
	return n, nil
}

// ofMessage turns a message into what the encoders take.
func ofMessage(m protoreflect.Message) any {
	if !m.IsValid() {
		return nil
	}
	switch v := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return v.AsTime().UTC().Format(time.RFC3339Nano)
	case *durationpb.Duration:
		return v.AsDuration().Seconds()
	}
	fields := m.Descriptor().Fields()
	out := make(object, 0, fields.Len())
	for i := range fields.Len() {
		fd := fields.Get(i)
		out = append(out, member{string(fd.Name()), ofField(m, fd)})
	}
	return out
}

func ofField(m protoreflect.Message, fd protoreflect.FieldDescriptor) any {
	v := m.Get(fd)
	switch {
	case fd.IsMap():
		out := make(object, 0, v.Map().Len())
		v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
			out = append(out, member{k.String(), ofScalar(x, fd.MapValue())})
			return true
		})
		slices.SortFunc(out, func(a, b member) int { return bytes.Compare([]byte(a.key), []byte(b.key)) })
		return out
	case fd.IsList():
		out := make([]any, 0, v.List().Len())
		for i := range v.List().Len() {
			out = append(out, ofScalar(v.List().Get(i), fd))
		}
		return out
	}
	return ofScalar(v, fd)
}

func ofScalar(v protoreflect.Value, fd protoreflect.FieldDescriptor) any {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return ofMessage(v.Message())
	case protoreflect.BytesKind:
		return base64.StdEncoding.EncodeToString(v.Bytes())
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
		return int32(v.Enum())
	}
	return v.Interface()
}
