package api

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// jsonCodec is the server's JSON: field names as in the proto files, so that they are the same everywhere in
// dozo, fields without a value included, and unknown fields refused. Connect's own takes "durabilty" for
// nothing at all, and a misspelt request would pass for one that was obeyed.
type jsonCodec struct{ name string }

// Name implements connect.Codec.
func (c jsonCodec) Name() string { return c.name }

// Marshal implements connect.Codec.
func (jsonCodec) Marshal(v any) ([]byte, error) {
	msg, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("encode %T: not a message", v)
	}
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(msg)
}

// Unmarshal implements connect.Codec.
func (jsonCodec) Unmarshal(b []byte, v any) error {
	msg, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode %T: not a message", v)
	}
	if len(b) == 0 {
		b = []byte("{}")
	}
	return protojson.Unmarshal(b, msg)
}
