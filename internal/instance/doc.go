// Package instance reads what describes a Dagster instance: $DAGSTER_HOME/dagster.yaml, as Dagster reads
// it, and slipway.yaml beside it, which holds Slipway's own settings. From them it builds
// the typed settings of every other package and the InstanceRef that workers are given.
//
// A setting that Slipway does not use is accepted and handed on to workers; one that is wrong, or
// that names something Slipway cannot do, is refused with file, line and the next step.
//
// Read from Dagster 1.13: dagster._core.instance.ref and dagster._core.instance.config.
package instance
