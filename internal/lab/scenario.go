package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"dozo/internal/config"
	"dozo/internal/lab/router"
)

// Scenario is a timeline of changes.
type Scenario struct {
	Steps []Step
	// Rounds is how often it is played, 0: until the context ends; Length how long a round takes: the time of the
	// last step, if nothing else was said.
	Rounds int
	Length time.Duration
}

// Step is one moment of a scenario.
type Step struct {
	At       time.Duration
	Commands [][]string
	changes  []router.Change
}

// stringList is a text or a list of texts.
type stringList []string

func (l *stringList) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*l = stringList{n.Value}
		return nil
	}
	return n.Decode((*[]string)(l))
}

// ParseScenario reads a scenario for a lab of these sites and checks every command in it.
func ParseScenario(text []byte, sites []string) (*Scenario, error) {
	var file struct {
		Steps []struct {
			At string     `yaml:"at"`
			Do stringList `yaml:"do"`
		} `yaml:"steps"`
		Repeat *int   `yaml:"repeat"`
		Length string `yaml:"length"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return nil, fmt.Errorf("%w: scenario: %w", ErrUsage, config.Explain(err))
	}
	if len(file.Steps) == 0 {
		return nil, fmt.Errorf("%w: scenario: no steps", ErrUsage)
	}
	s := &Scenario{Rounds: 1}
	for i, f := range file.Steps {
		at, err := parseDelay(f.At)
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", i+1, err)
		}
		if len(f.Do) == 0 {
			return nil, fmt.Errorf("%w: step %d does nothing", ErrUsage, i+1)
		}
		step := Step{At: at}
		for _, line := range f.Do {
			words := strings.Fields(line)
			changes, err := Command(sites, words)
			if err != nil {
				return nil, fmt.Errorf("step %d, %q: %w", i+1, line, err)
			}
			step.Commands = append(step.Commands, words)
			step.changes = append(step.changes, changes...)
		}
		s.Steps = append(s.Steps, step)
	}
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return int(a.At - b.At) })
	last := s.Steps[len(s.Steps)-1].At
	s.Length = last
	if file.Length != "" {
		var err error
		if s.Length, err = parseDelay(file.Length); err != nil {
			return nil, fmt.Errorf("length: %w", err)
		}
	}
	if s.Length < last {
		return nil, fmt.Errorf("%w: scenario: the last step, at %v, is behind its length, %v", ErrUsage, last, s.Length)
	}
	if file.Repeat != nil {
		s.Rounds = *file.Repeat
	}
	if s.Rounds < 0 || s.Rounds != 1 && s.Length == 0 {
		return nil, fmt.Errorf("%w: scenario: repeat is 0 or more, and what is repeated takes some time", ErrUsage)
	}
	return s, nil
}

// Words writes a command.
func Words(words []string) string { return strings.Join(words, " ") }

// Play plays a scenario; done is called after each command, with the time since the beginning. The commands of a step
// take effect at one moment.
func (l *Lab) Play(ctx context.Context, s *Scenario, done func(at time.Duration, words []string)) error {
	c, err := l.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	begin := time.Now()
	wait := func(at time.Duration) error {
		t := time.NewTimer(time.Until(begin.Add(at)))
		defer t.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return nil
		}
	}
	for round := 0; s.Rounds == 0 || round < s.Rounds; round++ {
		base := time.Duration(round) * s.Length
		for _, step := range s.Steps {
			if err := wait(base + step.At); err != nil {
				return err
			}
			if err := c.Apply(step.changes...); err != nil {
				return err
			}
			at := time.Since(begin)
			for _, words := range step.Commands {
				done(at, words)
			}
		}
		if err := wait(base + s.Length); err != nil {
			return err
		}
	}
	return nil
}
