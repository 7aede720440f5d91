// Package size reads and writes numbers of bytes as people do: 20G, 512MiB, 4096.
//
// Start at Parse and Format. K, M, G, T, P and E, alone or as KiB..EiB, are powers of 1024; kB, MB, GB, TB, PB
// and EB are powers of 1000, as SI has them. What Exact gives, Parse takes, and it is the same number.
package size
