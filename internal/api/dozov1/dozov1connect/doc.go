// Package dozov1connect has the handlers and clients of the API's services, generated from proto/dozo/v1 by
// tools/generate.sh. Package api makes both: start there.
package dozov1connect
