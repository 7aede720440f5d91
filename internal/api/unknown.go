package api

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// known refuses a request with a field that this version does not know, as the JSON codec does: a dry run that is asked of a node which
// has never heard of that one must not be the real thing.
func known(msg proto.Message) error { return knownIn(msg.ProtoReflect()) }

func knownIn(m protoreflect.Message) error {
	if b := m.GetUnknown(); len(b) > 0 {
		number, _, _ := protowire.ConsumeTag(b)
		return invalid("%s has a field with number %d, which this node does not know: it may be of an older version than the program that asks; upgrade it, or ask another node",
			m.Descriptor().Name(), number)
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := 0; err == nil && i < v.List().Len(); i++ {
				err = knownIn(v.List().Get(i).Message())
			}
		default:
			err = knownIn(v.Message())
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", f.Name(), err)
		}
		return err == nil
	})
	return err
}
