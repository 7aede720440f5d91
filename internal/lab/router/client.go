package router

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// answerTimeout is ample for a process that answers from memory.
const answerTimeout = 5 * time.Second

// Client is a control connection. It is not safe for concurrent use.
type Client struct {
	c   net.Conn
	in  *bufio.Reader
	out *json.Encoder
}

// Dial connects to a router's socket.
func Dial(socket string) (*Client, error) {
	c, err := net.DialTimeout("unix", socket, answerTimeout)
	if err != nil {
		return nil, err
	}
	return &Client{c: c, in: bufio.NewReader(c), out: json.NewEncoder(c)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

func (c *Client) call(req Request) (*Response, error) {
	if err := c.c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if err := c.out.Encode(req); err != nil {
		return nil, fmt.Errorf("ask the router: %w", err)
	}
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("the router's answer: %w", err)
	}
	var resp Response
	if err := json.Unmarshal(line, &resp); err != nil {
		return nil, fmt.Errorf("the router's answer: %w", err)
	}
	if resp.Setting {
		return nil, fmt.Errorf("%w%s", ErrSetting, strings.TrimPrefix(resp.Error, ErrSetting.Error()))
	}
	if resp.Error != "" {
		return nil, errors.New(resp.Error)
	}
	return &resp, nil
}

// Apply carries out changes, all at one moment, or none.
func (c *Client) Apply(changes ...Change) error {
	_, err := c.call(Request{Op: OpApply, Changes: changes})
	return err
}

// State asks for all settings and counts.
func (c *Client) State() (*State, error) {
	resp, err := c.call(Request{Op: OpState})
	if err != nil {
		return nil, err
	}
	if resp.State == nil {
		return nil, errors.New("the router's answer has no state")
	}
	return resp.State, nil
}

// Stop ends the router.
func (c *Client) Stop() error {
	_, err := c.call(Request{Op: OpStop})
	return err
}
