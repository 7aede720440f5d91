package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"dozo/internal/ident"
)

var update = flag.Bool("update", false, "rewrite testdata")

// fill sets every field of a message to something valid that depends on r.
// fillVersion is the version whose fields fill knows.
var fillVersion uint16 = VersionMax

func fill(r *rand.Rand, v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *ReplicaState:
		*p = ReplicaState(1 + r.IntN(int(ReplicaFork)))
		return
	case *ForwardOp:
		*p = ForwardOp(1 + r.IntN(int(opMax)))
		return
	case *BarKind:
		most := barMax
		if fillVersion < version2 {
			most = BarAccept // what version 1 has
		}
		*p = BarKind(1 + r.IntN(int(most)))
		return
	case *HandStep:
		*p = HandStep(1 + r.IntN(int(handMax)))
		return
	case *Class:
		*p = Class(1 + r.IntN(int(ClassMax)))
		return
	case *time.Duration:
		*p = time.Duration(r.Int64())
		return
	case *[]byte: // data
		*p = randomBytes(r, 1+r.IntN(300))
		return
	case *[][]byte:
		*p = [][]byte{randomBytes(r, 1+r.IntN(300))}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			since, _ := strconv.Atoi(f.Tag.Get("since"))
			if name := f.Name; name != "Trusted" && name != "Release" && name != "Took" && uint16(since) <= fillVersion {
				fill(r, v.Field(i))
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+r.IntN(3), 4))
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.String:
		v.SetString(hex.EncodeToString(randomBytes(r, 1+r.IntN(20))))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> (64 - v.Type().Bits()))
	default:
		panic(v.Type().String())
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// messages makes every request and reply once, in order of types.
func messages(r *rand.Rand) (names []string, all []Message) {
	for _, t := range Types() {
		k, _ := KindOf(t)
		for _, side := range []struct {
			name string
			make func() Message
		}{{"request", k.Request}, {"reply", k.Reply}} {
			if side.make == nil {
				continue
			}
			m := side.make()
			fill(r, reflect.ValueOf(m).Elem())
			names, all = append(names, fmt.Sprintf("%d-%s-%s", t, strings.ReplaceAll(k.Name, " ", "-"), side.name)), append(all, m)
		}
	}
	return names, all
}

func encode(m Message) []byte {
	b := AppendFields(nil, m)
	for _, p := range DataOf(nil, m) {
		b = append(b, p...)
	}
	return b
}

func TestEveryMessageComesBackAsItWas(t *testing.T) {
	for seed := range uint64(50) {
		names, all := messages(rand.New(rand.NewPCG(seed, 1)))
		for i, m := range all {
			b := encode(m)
			got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			if err := Decode(got, b); err != nil {
				t.Fatalf("seed %d, %s: %v", seed, names[i], err)
			}
			if !reflect.DeepEqual(got, m) {
				t.Fatalf("seed %d, %s:\n got %+v\nwant %+v", seed, names[i], got, m)
			}
			// Into one that was used before: nothing of it may remain.
			if err := Decode(m, b); err != nil || !reflect.DeepEqual(got, m) {
				t.Fatalf("seed %d, %s decoded again into itself: %v", seed, names[i], err)
			}
			fields := len(AppendFields(nil, m))
			for n := range fields {
				if err := Decode(got, b[:n]); !errors.Is(err, ErrBadRequest) {
					t.Fatalf("seed %d, %s cut to %d of %d bytes: %v", seed, names[i], n, len(b), err)
				}
			}
			if len(DataOf(nil, m)) == 0 {
				if err := Decode(got, append(b, 0)); !errors.Is(err, ErrBadRequest) {
					t.Fatalf("seed %d, %s with a byte more: %v", seed, names[i], err)
				}
			}
		}
	}
}

// The bytes of every message as each version writes them. A difference means that nodes of two builds do not
// understand each other: raise VersionMax, don't update the file of a version that was released.
func TestGoldenBytes(t *testing.T) {
	for v := uint16(VersionMin); v <= VersionMax; v++ {
		goldenBytes(t, v)
	}
}

func goldenBytes(t *testing.T, version uint16) {
	t.Helper()
	fillVersion = version
	defer func() { fillVersion = VersionMax }()
	names, all := messages(rand.New(rand.NewPCG(1, 1)))
	var b strings.Builder
	for i, m := range all {
		if m.Type().Since() > version {
			continue
		}
		f := appendFrameAt(nil, Header{Request: uint64(i)}, m, true, version)
		fmt.Fprintf(&b, "%s %d %x\n", names[i], len(f), sha256.Sum256(f))
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		payload := AppendFieldsAt(nil, m, version)
		for _, p := range DataOf(nil, m) {
			payload = append(payload, p...)
		}
		if err := DecodeAt(got, payload, version); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("version %d, %s does not come back: %v", version, names[i], err)
		}
	}
	path := filepath.Join("testdata", fmt.Sprintf("version%d.txt", version))
	if *update && version == VersionMax {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("frames differ from %s:\n%s", path, b.String())
	}
}

func TestHelloBytesNeverChange(t *testing.T) {
	h := Hello{Kind: HelloClient, Class: ClassAppend, VersionMin: 1, VersionMax: 3, Code: CodeVersion, Instance: 0x0102030405060708,
		Capabilities: CapPlainData, Cluster: "c1", Node: "n1", Detail: "why", Auth: []byte{9}}
	const want = "646f7a6f68656c6f" + "d99aee20" + "3800" + "01" + "02" + "0100" + "0300" + "1100" + "0000" + "0807060504030201" + "0100000000000000" +
		"02006331" + "02006e31" + "0300776879" + "010009"
	b := AppendHello(nil, &h)
	if hex.EncodeToString(b) != want {
		t.Errorf("hello is\n%x, pinned as\n%s", b, want)
	}
	got, err := ParseHello(b)
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("ParseHello = %+v, %v", got, err)
	}
}

func TestHelloOfALaterVersionIsUnderstood(t *testing.T) {
	h := Hello{Kind: HelloRefuse, VersionMin: 7, VersionMax: 9, Cluster: "c", Node: "n"}
	b := append(AppendHello(nil, &h), "appended by version 9"...)
	b[12] = byte(len(b))
	putCRC(b)
	got, err := ParseHello(b)
	if err != nil || got.VersionMin != 7 {
		t.Fatalf("ParseHello = %+v, %v", got, err)
	}
	if _, err := Agree(&got, &Hello{VersionMin: 1, VersionMax: 6}); !errors.Is(err, ErrVersion) {
		t.Errorf("versions 7 to 9 and 1 to 6 agree: %v", err)
	}
	if v, err := Agree(&got, &Hello{VersionMin: 1, VersionMax: 8}); v != 8 || err != nil {
		t.Errorf("versions 7 to 9 and 1 to 8 agree on %d, %v; want 8", v, err)
	}
}

func putCRC(b []byte) {
	crc := Extend(0, b[12:])
	b[8], b[9], b[10], b[11] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
}

func TestFrameHeaderRefusesWhatIsWrong(t *testing.T) {
	good := Header{Type: TypeAppend, Flags: FlagChecked, Request: 1, Length: 10, PayloadCRC: 1}
	b := make([]byte, HeaderSize)
	PutHeader(b, &good)
	if got, err := ParseHeader(b); err != nil || got != good {
		t.Fatalf("ParseHeader = %+v, %v", got, err)
	}
	for i := range b { // every bit counts
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, err := ParseHeader(c); err == nil {
				t.Fatalf("byte %d bit %d flipped: no error", i, bit)
			}
		}
	}
	for name, h := range map[string]Header{
		"too long":             {Type: TypeRead, Length: PayloadMax + 1},
		"flags":                {Type: TypeRead, Flags: 0x80},
		"CRC without flag":     {Type: TypeRead, PayloadCRC: 1},
		"request with code":    {Type: TypeRead, Code: 1},
		"empty continued part": {Type: TypeRead, Flags: FlagMore},
	} {
		PutHeader(b, &h)
		if _, err := ParseHeader(b); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	PutHeader(b, &good)
	b[8] = 2
	crc := Extend(0, b[8:])
	b[4], b[5], b[6], b[7] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	if _, err := ParseHeader(b); !errors.Is(err, ErrVersion) {
		t.Errorf("frame version 2: %v", err)
	}
}

func TestPayloadChecksum(t *testing.T) {
	for _, c := range []struct {
		m         Message
		checksAll bool
	}{{&Append{Data: [][]byte{make([]byte, 100)}}, false}, {&Forward{Op: OpWrite, Data: [][]byte{make([]byte, 100)}}, true}} {
		f := AppendFrame(nil, Header{Request: 1}, c.m, true)
		h, err := ParseHeader(f)
		if err != nil || Verify(&h, f[HeaderSize:]) != nil {
			t.Fatalf("%T: %v, %v", c.m, err, Verify(&h, f[HeaderSize:]))
		}
		f[HeaderSize] ^= 1
		if Verify(&h, f[HeaderSize:]) == nil {
			t.Errorf("%T: a changed field is not seen", c.m)
		}
		f[HeaderSize] ^= 1
		f[len(f)-1] ^= 1
		if seen := Verify(&h, f[HeaderSize:]) != nil; seen != c.checksAll {
			t.Errorf("%T: changed data seen: %v, want %v", c.m, seen, c.checksAll)
		}
	}
}

func TestAppendFieldsIsTheirSize(t *testing.T) {
	if n := len(AppendFields(nil, &Append{})); n != appendFields {
		t.Errorf("fields of an append take %d bytes, constant says %d", n, appendFields)
	}
}

func TestErrorsComeBackAsTheyWere(t *testing.T) {
	for c := CodeFenced; c <= CodeUnproven; c++ {
		e := &Error{Code: c, Epoch: ident.Epoch{Number: 5, Lineage: 6}, Detail: strings.Repeat("x", int(c))}
		got, err := DecodeError(AppendError(nil, e))
		if err != nil || *got != *e {
			t.Errorf("DecodeError = %v, %v; want %v", got, err, e)
		}
		if strings.HasPrefix(c.String(), "code ") {
			t.Errorf("code %d has no name", c)
		}
	}
	long, err := DecodeError(AppendError(nil, Errorf(CodeIO, "%s", strings.Repeat("y", 5000))))
	if err != nil || len(long.Detail) != detailMax {
		t.Errorf("a long detail: %v", err)
	}
	for _, bad := range [][]byte{nil, AppendError(nil, &Error{}), append(AppendError(nil, ErrIO), 0)} {
		if _, err := DecodeError(bad); err == nil {
			t.Errorf("DecodeError(%x): no error", bad)
		}
	}
}

func TestHotMessagesDoNotAllocate(t *testing.T) {
	a := &Append{Data: [][]byte{make([]byte, 4096)}}
	payload := encode(a)
	var got Append
	buf := make([]byte, 0, 8192)
	f := &Forward{Op: OpWrite, Nexus: Nexus{Initiator: "iqn.2026-01.example:host"}, Data: a.Data}
	fpayload := encode(f)
	var fgot Forward
	if n := testing.AllocsPerRun(100, func() {
		buf = AppendFields(buf[:0], a)
		if Decode(&got, payload) != nil || Decode(&fgot, fpayload) != nil {
			t.Fatal("decode")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// One fuzz target for all messages: the first byte chooses which.
func FuzzDecode(f *testing.F) {
	var makers []func() Message
	for _, t := range Types() {
		k, _ := KindOf(t)
		makers = append(makers, k.Request)
		if k.Reply != nil {
			makers = append(makers, k.Reply)
		}
	}
	_, all := messages(rand.New(rand.NewPCG(2, 2)))
	for i, m := range all {
		f.Add(uint8(i), encode(m))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		m := makers[int(which)%len(makers)]()
		if Decode(m, b) != nil {
			return
		}
		if again := encode(m); !bytes.Equal(again, b) {
			t.Errorf("%T: %x decodes to what encodes as %x", m, b, again)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendFrame(nil, Header{Request: 1}, &Ping{}, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		again := make([]byte, HeaderSize)
		if PutHeader(again, &h); !bytes.Equal(again, b[:HeaderSize]) {
			t.Errorf("%x parses to what encodes as %x", b[:HeaderSize], again)
		}
	})
}

func FuzzParseHello(f *testing.F) {
	f.Add(AppendHello(nil, &Hello{Kind: HelloClient, Class: ClassRead, Cluster: "c", Node: "n", Auth: []byte("a")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= HelloPrefix { // let the fuzzer past the checksum
			putCRC(b)
		}
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		if again := AppendHello(nil, &h); !bytes.Equal(again[HelloPrefix:24-2], b[HelloPrefix:24-2]) {
			t.Errorf("%x parses to what encodes as %x", b, again)
		}
	})
}

func FuzzDecodeError(f *testing.F) {
	f.Add(AppendError(nil, Errorf(CodeFenced, "by %d", 7)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := DecodeError(b); err == nil && !bytes.Equal(AppendError(nil, e), b) {
			t.Errorf("%x decodes to %v", b, e)
		}
	})
}

// What came later than the first version is told from what did not, also within a type.
func TestSince(t *testing.T) {
	for _, x := range []struct {
		m    Message
		want uint16
	}{{&Bar{Kind: BarAccept}, 1}, {&Bar{Kind: BarForget}, 2}, {&Blocks{}, 2}, {&HandOver{}, 1}} {
		if got := Since(x.m); got != x.want {
			t.Errorf("%s: version %d, want %d", x.m.Type(), got, x.want)
		}
	}
}
