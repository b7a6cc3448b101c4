// Package dagster is Dagster's data model as other processes see it: runs, events and
// worker arguments in the JSON that Dagster's serdes writes to shared storage and to
// command lines. It is pure: it reads no file, no clock and no database.
//
// The one idea it rests on is that a stored object is kept as the exact texts of its
// fields. What Slipway knows is decoded from them, what it changes is encoded over
// them, and everything else, known to this version of Dagster or not, goes back byte
// for byte.
//
// Facts were read from Dagster 1.13 (dagster._serdes.serdes, dagster._core.events,
// dagster._core.storage.dagster_run) and are held to data that real Dagster wrote,
// in test/golden.
package dagster
