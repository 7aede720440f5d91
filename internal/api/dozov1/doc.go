// Package dozov1 has the messages of the API (dozo.v1 on the wire), generated from proto/dozo/v1 by
// tools/generate.sh; common.proto has the conventions. Package api serves and calls them: start there.
package dozov1
