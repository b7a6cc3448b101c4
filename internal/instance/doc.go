// Package instance reads the two files that describe a Dagster instance:
// $DAGSTER_HOME/dagster.yaml, as Dagster reads it, and slipway.yaml beside it, which has Slipway's
// own settings. From them it builds the typed settings of every other package and the InstanceRef
// that workers get.
//
// A setting of Dagster that Slipway does not use is accepted and passed on to workers. A setting
// that is wrong, or that Slipway cannot support, is refused with its file, its line and the next
// step.
//
// Read from Dagster 1.13: dagster._core.instance.ref and dagster._core.instance.config.
package instance
