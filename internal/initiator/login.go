package initiator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// LoginError is a login that the target refused (RFC 7143 11.13.5).
type LoginError struct{ Class, Detail byte }

var loginDetails = map[uint16]string{
	0x0101: "target moved temporarily", 0x0102: "target moved permanently",
	0x0200: "initiator error", 0x0201: "authentication failure", 0x0202: "authorization failure",
	0x0203: "target not found", 0x0204: "target removed", 0x0205: "unsupported version",
	0x0206: "too many connections", 0x0207: "missing parameter", 0x0208: "can't include in session",
	0x0209: "session type not supported", 0x020a: "session does not exist", 0x020b: "invalid request during login",
	0x0300: "target error", 0x0301: "service unavailable", 0x0302: "out of resources",
}

func (e *LoginError) Error() string {
	what, ok := loginDetails[uint16(e.Class)<<8|uint16(e.Detail)]
	if !ok {
		what = "unknown status"
	}
	return fmt.Sprintf("login refused: %s (0x%02x%02x)", what, e.Class, e.Detail)
}

// NoTarget says whether the target that was asked for is not there, or was taken away.
func (e *LoginError) NoTarget() bool { return e.Class == 2 && (e.Detail == 3 || e.Detail == 4) }

// permanent says whether trying again cannot help.
func (e *LoginError) permanent() bool { return e.Class == 2 }

// redirectError is a login response of class 1.
type redirectError struct {
	addr      string
	permanent bool
}

func (e *redirectError) Error() string { return "target moved to " + e.addr }

// Login stages (RFC 7143 11.12.3).
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

const (
	loginDataMax   = 8192 // what we send in one login PDU: the default MaxRecvDataSegmentLength
	loginRecvMax   = 64 << 10
	loginTextMax   = 256 << 10 // all PDUs of one answer
	loginRoundsMax = 32        // a target that negotiates for longer is not going to stop
	redirectsMax   = 8
)

// loginConn is one connection during login.
type loginConn struct {
	cfg     *Config
	c       net.Conn
	addr    string // after redirects
	cid     uint16
	tsih    uint16
	itt     uint32
	cmdSN   uint32
	stage   byte
	get     map[string]string // keys of the last answer
	last    BHS               // of the last response
	gotStat bool
	statSN  uint32 // expected next
	buf     []byte
}

// loginResult is what a successful login leaves.
type loginResult struct {
	params             Params
	tsih               uint16
	expCmdSN, maxCmdSN uint32
	expStatSN          uint32
}

// exchange sends kvs in one login request, or several if they are long, and returns the keys of the answer.
func (l *loginConn) exchange(kvs []KeyValue, transit bool, next byte) ([]KeyValue, error) {
	text := appendKeys(nil, kvs)
	for len(text) > loginDataMax {
		if err := l.send(text[:loginDataMax], flagContinue|l.stage<<2); err != nil {
			return nil, err
		}
		if data, err := l.recv(); err != nil {
			return nil, err
		} else if len(data) > 0 {
			return nil, errors.New("login: target answers before our text is complete")
		}
		text = text[loginDataMax:]
	}
	flags := l.stage << 2
	if transit {
		flags |= flagTransit | next
	}
	if err := l.send(text, flags); err != nil {
		return nil, err
	}
	var answer []byte
	for {
		data, err := l.recv()
		if err != nil {
			return nil, err
		}
		if len(answer)+len(data) > loginTextMax {
			return nil, errors.New("login: endless text from target")
		}
		answer = append(answer, data...)
		if l.last[1]&flagContinue == 0 {
			break
		}
		if err := l.send(nil, l.stage<<2); err != nil {
			return nil, err
		}
	}
	keys, err := parseKeys(answer)
	if err != nil {
		return nil, err
	}
	l.get = map[string]string{}
	for _, kv := range keys {
		l.get[kv.Key] = kv.Value
	}
	if err := l.status(); err != nil {
		return keys, err
	}
	if l.last[1]&flagTransit != 0 {
		if !transit {
			return nil, errors.New("login: target changes stage on its own")
		}
		l.stage = l.last[1] & 3
		if l.stage > next {
			return nil, fmt.Errorf("login: target goes to stage %d, asked for %d", l.stage, next)
		}
	}
	return keys, nil
}

func (l *loginConn) send(text []byte, flags byte) error {
	var p PDU
	p.BHS[0] = byte(OpLogin) | flagImmediate
	p.BHS[1] = flags
	isid := l.cfg.ISID
	copy(p.BHS[8:14], isid[:])
	p.BHS.SetUint16(14, l.tsih)
	p.BHS.SetUint32(offITT, l.itt)
	p.BHS.SetUint16(20, l.cid)
	p.BHS.SetUint32(offCmdSN, l.cmdSN)
	p.BHS.SetUint32(offExpStatSN, l.statSN)
	p.BHS.SetDataLen(len(text))
	p.Data = text
	raw, act := encodeHooked(l.cfg.Hooks, l.cid, framing{}, &p)
	if act.Delay > 0 {
		time.Sleep(act.Delay)
	}
	if act.Reset {
		return errHookReset
	}
	if _, err := l.c.Write(raw); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	if act.CloseWrite {
		(&netTransport{l.c}).closeWrite()
	}
	return nil
}

func (l *loginConn) recv() ([]byte, error) {
	for {
		var p PDU
		if _, err := io.ReadFull(l.c, p.BHS[:]); err != nil {
			return nil, fmt.Errorf("login: read: %w", err)
		}
		if op := p.BHS.Op(); op != OpLoginResp && op != OpReject {
			return nil, fmt.Errorf("login: target sends %s", op)
		}
		n := p.BHS.DataLen()
		if n > loginRecvMax {
			return nil, fmt.Errorf("login: %w", ErrTooLong)
		}
		l.buf = append(l.buf[:0], make([]byte, p.BHS.AHSLen()+pad4(n))...)
		if _, err := io.ReadFull(l.c, l.buf); err != nil {
			return nil, fmt.Errorf("login: read: %w", err)
		}
		p.Data = l.buf[p.BHS.AHSLen():][:n]
		if h := l.cfg.Hooks.In; h != nil {
			act := h(l.cid, &p)
			if act.Delay > 0 {
				time.Sleep(act.Delay)
			}
			if act.Reset {
				return nil, errHookReset
			}
			if act.Drop {
				continue
			}
		}
		if p.BHS.Op() == OpReject {
			return nil, fmt.Errorf("login: %w", &RejectError{Reason: p.BHS[2], Op: OpLogin})
		}
		if p.BHS.ITT() != l.itt {
			return nil, errors.New("login: response with another task tag")
		}
		if p.BHS[36] == 0 || p.BHS[36] == 1 && p.BHS.Uint32(offStatSN) != 0 {
			sn := p.BHS.Uint32(offStatSN)
			if l.gotStat && sn != l.statSN {
				return nil, fmt.Errorf("login: StatSN %d, expected %d", sn, l.statSN)
			}
			l.gotStat, l.statSN = true, sn+1
		}
		l.last = p.BHS
		return p.Data, nil
	}
}

// status turns the status of the last response into an error.
func (l *loginConn) status() error {
	class, detail := l.last[36], l.last[37]
	switch {
	case class == 0:
		return nil
	case class == 1 && l.get["TargetAddress"] != "":
		addr, _, _ := strings.Cut(l.get["TargetAddress"], ",")
		return &redirectError{addr: withPort(addr), permanent: detail == 2}
	}
	err := &LoginError{class, detail}
	if class == 2 && (detail == 1 || detail == 2) {
		return fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	return err
}

// names are the keys that the first request carries.
func (l *loginConn) names() []KeyValue {
	kvs := []KeyValue{{"InitiatorName", l.cfg.Initiator}}
	if l.cfg.Alias != "" {
		kvs = append(kvs, KeyValue{"InitiatorAlias", l.cfg.Alias})
	}
	if l.cfg.Discovery {
		return append(kvs, KeyValue{"SessionType", "Discovery"})
	}
	return append(kvs, KeyValue{"SessionType", "Normal"}, KeyValue{"TargetName", l.cfg.Target})
}

// run goes through the stages. base is what the session has agreed on already (later connections).
func (l *loginConn) run(base Params, leading bool) (*loginResult, error) {
	first := l.names()
	if l.cfg.SkipSecurity {
		l.stage = stageOperational
	} else {
		if err := l.security(first); err != nil {
			return nil, err
		}
		first = nil
	}
	params := base
	if l.stage != stageFull {
		p, err := l.operational(base, first, leading)
		if err != nil {
			return nil, err
		}
		params = p
	}
	r := &loginResult{
		params: params, tsih: l.last.Uint16(14),
		expCmdSN: l.last.Uint32(offExpCmdSN), maxCmdSN: l.last.Uint32(offMaxCmdSN),
		expStatSN: l.statSN,
	}
	if r.tsih == 0 && !l.cfg.Discovery {
		return nil, errors.New("login: target gives no TSIH")
	}
	return r, nil
}

func (l *loginConn) security(first []KeyValue) error {
	l.stage = stageSecurity
	var kvs []KeyValue
	if !l.cfg.CHAP.used() {
		kvs = append(first, KeyValue{"AuthMethod", "None"})
		if _, err := l.exchange(l.override(kvs), true, stageOperational); err != nil {
			return err
		}
	} else {
		method := "CHAP,None"
		if l.cfg.CHAP.TargetSecret != "" {
			method = "CHAP"
		}
		kvs = append(first, KeyValue{"AuthMethod", method})
		if _, err := l.exchange(l.override(kvs), false, 0); err != nil {
			return err
		}
		switch l.get["AuthMethod"] {
		case "CHAP":
			if err := l.chap(); err != nil {
				return err
			}
		case "None":
			if l.cfg.CHAP.TargetSecret != "" {
				return fmt.Errorf("target wants no authentication, we do: %w", ErrAuthentication)
			}
		default:
			return fmt.Errorf("target answers AuthMethod=%q: %w", l.get["AuthMethod"], ErrAuthentication)
		}
	}
	for range loginRoundsMax {
		if l.stage != stageSecurity {
			return nil
		}
		if _, err := l.exchange(nil, true, stageOperational); err != nil {
			return err
		}
	}
	return errors.New("login: target never leaves the security stage")
}

func (l *loginConn) chap() error {
	offer, err := l.cfg.CHAP.offer()
	if err != nil {
		return err
	}
	x := &chapExchange{chap: l.cfg.CHAP, offer: offer}
	if _, err := l.exchange([]KeyValue{{"CHAP_A", offer}}, false, 0); err != nil {
		return err
	}
	kvs, err := x.answer(func(k string) string { return l.get[k] })
	if err != nil {
		return err
	}
	if _, err := l.exchange(l.override(kvs), true, stageOperational); err != nil {
		return err
	}
	return x.verify(func(k string) string { return l.get[k] })
}

func (l *loginConn) operational(base Params, first []KeyValue, leading bool) (Params, error) {
	var kvs []KeyValue
	if !l.cfg.Discovery {
		kvs = l.cfg.Offer.keys(leading)
	} else {
		o := *l.cfg.Offer
		kvs = o.keys(false)
	}
	kvs = append(first, kvs...)
	forced := len(l.cfg.Override) > 0
	kvs = l.override(kvs)
	neg := newNegotiation(base, kvs, forced)
	for range loginRoundsMax {
		keys, err := l.exchange(kvs, true, stageFull)
		if err != nil {
			return Params{}, err
		}
		kvs = kvs[:0]
		for _, kv := range keys {
			answer, err := neg.receive(kv)
			if err != nil {
				return Params{}, err
			}
			if answer != nil {
				kvs = append(kvs, *answer)
			}
		}
		if l.stage == stageFull {
			if len(kvs) > 0 {
				return Params{}, fmt.Errorf("login: target asks for %s and does not wait for the answer", kvs[0].Key)
			}
			p := neg.params
			if p.FirstBurstLength > p.MaxBurstLength {
				// RFC 7143 13.14 forbids it; the smaller one is safe with either reading.
				p.FirstBurstLength = p.MaxBurstLength
			}
			return p, nil
		}
	}
	return Params{}, errors.New("login: negotiation does not end")
}

// override replaces, adds and removes keys as Config.Override says: keys that kvs has get the given value or are
// left out if it is "-". Others are added in the operational stage.
func (l *loginConn) override(kvs []KeyValue) []KeyValue {
	if len(l.cfg.Override) == 0 {
		return kvs
	}
	var out []KeyValue
	used := map[string]bool{}
	for _, kv := range kvs {
		for _, o := range l.cfg.Override {
			if o.Key == kv.Key {
				kv.Value = o.Value
				used[o.Key] = true
			}
		}
		if kv.Value != "-" {
			out = append(out, kv)
		}
	}
	if l.stage == stageOperational {
		for _, o := range l.cfg.Override {
			if !used[o.Key] && o.Value != "-" && !isSecurityKey(o.Key) {
				out = append(out, o)
			}
		}
	}
	return out
}

func isSecurityKey(k string) bool {
	switch k {
	case "InitiatorName", "InitiatorAlias", "SessionType", "TargetName", "AuthMethod":
		return true
	}
	return strings.HasPrefix(k, "CHAP_")
}

// dialLogin connects to addr, follows redirects and logs in. It returns the address that a permanent redirect
// named, or "".
func dialLogin(ctx context.Context, cfg *Config, addr string, l *loginConn, base Params, leading bool) (*loginResult, string, error) {
	moved := ""
	for range redirectsMax {
		r, err := dialLoginOnce(ctx, cfg, addr, l, base, leading)
		var re *redirectError
		if !errors.As(err, &re) {
			return r, moved, err
		}
		cfg.log().Info("target redirects", "target", cfg.Target, "addr", re.addr, "permanent", re.permanent)
		addr = re.addr
		if re.permanent {
			moved = addr
		}
	}
	return nil, "", errors.New("login: target redirects in circles")
}

func dialLoginOnce(ctx context.Context, cfg *Config, addr string, l *loginConn, base Params, leading bool) (*loginResult, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.LoginTimeout)
	defer cancel()
	c, err := cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	*l = loginConn{cfg: cfg, c: c, addr: addr, cid: l.cid, tsih: l.tsih, itt: 0, cmdSN: l.cmdSN}
	r, err := l.run(base, leading)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return r, nil
}

// withPort adds the port that IANA gave iSCSI where addr has none.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), "3260")
}
