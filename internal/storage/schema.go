package storage

import "slices"

// Revision is the newest schema revision that Slipway was run against: alembic's version_num of
// Dagster 1.13.
const Revision = "29b539ebc72a"

// revisions are the schema revisions that Slipway knows, from the oldest that has the tables it
// needs (kvs) to the newest. Running dagster instance migrate is optional, so most databases are
// somewhere in between.
var revisions = []string{
	"5e139331e376", "a00dd8d936a1", "958a9495162d", "6df03f4b1efb", "16689497301f", "e62c379ac8f4", "d9092588866f",
	"701913684cb4",
	"d3a4c9e87af3", "5771160a95ad", "ec80dd91891a", "46b412388816", "284a732df317", "63d7a8ec641a", "1aca709bba64",
	"16e3655b4d9b",
	"6b7fb194ff9c", "7e2f3204cf8e", "f495c27d5019", Revision,
}

// KnowsRevision reports whether Slipway knows a schema revision. Another one may work as well, if
// it has the columns that Slipway uses; opening a store checks them.
func KnowsRevision(revision string) bool { return slices.Contains(revisions, revision) }

// RunIndexes returns the data migrations of the runs that a new storage has done (in the table
// secondary_indexes). Without them Dagster falls back to slow paths.
func RunIndexes() []string {
	return []string{
		"run_partitions", "run_repo_label_tags", "bulk_action_types", "run_backfill_id", "backfill_job_name_and_tags",
		"backfill_end_timestamp", "run_start_end_overwritten",
	}
}

// EventIndexes returns the data migrations of the event log; see [RunIndexes].
func EventIndexes() []string { return []string{"asset_key_table", "asset_key_index_columns"} }

// ScheduleIndexes returns the data migrations of the schedules; see [RunIndexes].
func ScheduleIndexes() []string {
	return []string{"schedule_jobs_selector_id", "schedule_ticks_selector_id"}
}
