// Command table turns what `dozo bench compare -o json` printed into a Markdown table: go run ./test/bench/table
// HEADING=FILE... Each file is one comparison; A is dozo, B is the other target.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

type side struct {
	IOPS spread  `json:"iops"`
	MBps spread  `json:"mb_per_s"`
	P50  spread  `json:"p50_us"`
	P99  spread  `json:"p99_us"`
	CPU  *spread `json:"server_cpu_s_per_100k"`
}

type comparison struct {
	Workload string  `json:"workload"`
	Rounds   int     `json:"rounds"`
	A        side    `json:"a"`
	B        side    `json:"b"`
	Ratio    float64 `json:"ratio_iops"`
}

func main() {
	for _, arg := range os.Args[1:] {
		heading, file, ok := strings.Cut(arg, "=")
		if !ok {
			fmt.Fprintln(os.Stderr, "usage: table HEADING=FILE...")
			os.Exit(2)
		}
		if err := print(heading, file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func print(heading, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var list []comparison
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	fmt.Printf("\n### %s\n\n", heading)
	fmt.Println("| load | dozo IOPS | tgt IOPS | dozo / tgt | dozo MB/s | tgt MB/s | dozo p50 us | tgt p50 us | dozo p99 us | tgt p99 us | dozo CPU s | tgt CPU s |")
	fmt.Println("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
	for _, c := range list {
		fmt.Printf("| %s | %s | %s | %.2f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %s | %s |\n", c.Workload, iops(c.A.IOPS), iops(c.B.IOPS), c.Ratio,
			c.A.MBps.Median, c.B.MBps.Median, c.A.P50.Median, c.B.P50.Median, c.A.P99.Median, c.B.P99.Median, cpu(c.A.CPU), cpu(c.B.CPU))
	}
	return nil
}

// iops shows the median, and the extremes: they say whether the machine was quiet.
func iops(s spread) string { return fmt.Sprintf("%.0f (%.0f to %.0f)", s.Median, s.Min, s.Max) }

func cpu(s *spread) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", s.Median)
}
