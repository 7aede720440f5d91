// Package config is the configuration of one node: the file that `dozo serve --config FILE` reads.
//
// Start at Config; Load reads, fills in and checks a file, Default has what holds where the file is silent,
// Marshal writes a file that Load takes. The format is YAML; an unknown key is an error with its line, so a
// misspelt setting never passes for one that holds.
//
// Always true after Load: every address is filled in, paths are absolute, and Validate found nothing. Nothing
// is changed afterwards. Durations carry their unit (10m), sizes too (64MiB). docs/reference/configuration.md
// explains every key and docs/reference/dozo.example.yaml is a complete example; a test loads it.
package config
