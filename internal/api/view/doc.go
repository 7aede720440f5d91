// Package view prints the API's messages: as JSON and YAML for programs, as tables for people.
//
// Start at Format.Message, Format.List and Table. JSON and YAML have the messages' fields in their order and under
// their names in proto/dozo/v1, all of them, also those without a value. Unlike the API's own JSON, whose rules
// protobuf fixes, 64-bit numbers are numbers; times are RFC 3339 in UTC, null where there is none; a message
// that is not there is null, durations are seconds.
package view
