// Package dagster is Dagster's data model as other processes see it: runs, events and worker
// arguments in the JSON that Dagster's serdes writes to shared storage and to command lines. It
// reads no file and no database, and no clock except in [Inside].
//
// It keeps a stored object as the exact texts of its fields. Slipway decodes the fields that it
// knows and replaces the fields that it changes. Every other field, whether this version of Dagster
// knows it or not, goes back byte for byte.
//
// The facts are from Dagster 1.13 (dagster._serdes.serdes, dagster._core.events,
// dagster._core.storage.dagster_run). Tests compare them with data that real Dagster wrote, in
// test/golden.
package dagster
