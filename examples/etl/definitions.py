"""A small Dagster project on real data: Seattle's daily weather, 2012 to 2015 (NOAA).

The PyPI package vega_datasets ships it. Its CSV file is read where pip put it, so that the
project needs nothing but Dagster."""

import csv
import statistics
from importlib.util import find_spec
from pathlib import Path

import dagster as dg

months = dg.MonthlyPartitionsDefinition(start_date="2012-01-01", end_date="2016-01-01")


def readings() -> list[dict]:
    """All days of the data set, oldest first."""
    package = find_spec("vega_datasets")
    if package is None:
        raise dg.Failure("The package vega_datasets is not installed; make venv installs it.")
    path = Path(package.submodule_search_locations[0]) / "_data" / "seattle-weather.csv"
    with path.open(newline="") as f:
        return [
            {
                "date": row["date"].replace("/", "-"),
                "rain": float(row["precipitation"]),
                "max": float(row["temp_max"]),
                "min": float(row["temp_min"]),
                "weather": row["weather"],
            }
            for row in csv.DictReader(f)
        ]


@dg.asset(group_name="weather", description="Days of each year.")
def days_by_year(context: dg.AssetExecutionContext) -> dict[str, int]:
    counts: dict[str, int] = {}
    for r in readings():
        counts[r["date"][:4]] = counts.get(r["date"][:4], 0) + 1
    context.add_output_metadata({"years": len(counts), "days": sum(counts.values())})
    return counts


@dg.asset(group_name="weather", description="Rain of each year, in millimetres.")
def rain_by_year(context: dg.AssetExecutionContext, days_by_year: dict[str, int]) -> dict[str, float]:
    rain = dict.fromkeys(days_by_year, 0.0)
    for r in readings():
        rain[r["date"][:4]] += r["rain"]
    rain = {year: round(mm, 1) for year, mm in rain.items()}
    wettest = max(rain, key=rain.__getitem__)
    context.add_output_metadata({"wettest year": wettest, "rain (mm)": rain[wettest]})
    return rain


@dg.asset(
    group_name="weather",
    partitions_def=months,
    description="Temperatures of one month, in degrees Celsius.",
)
def month_temperatures(context: dg.AssetExecutionContext) -> dict[str, float]:
    month = context.partition_key[:7]
    days = [r for r in readings() if r["date"].startswith(month)]
    if not days:
        raise dg.Failure(f"There are no readings for {month}.")
    result = {
        "mean high": round(statistics.mean(r["max"] for r in days), 1),
        "mean low": round(statistics.mean(r["min"] for r in days), 1),
    }
    context.add_output_metadata({"days": len(days), **result})
    return result


@dg.op(retry_policy=dg.RetryPolicy(max_retries=2), description="Fails once, as services do.")
def fetch_forecast(context: dg.OpExecutionContext) -> str:
    if context.retry_number == 0:
        raise RuntimeError("the forecast service did not answer")
    rainy = sum(1 for r in readings() if r["weather"] == "rain")
    return f"rain on {rainy} of {len(readings())} days; take an umbrella"


@dg.op
def publish(context: dg.OpExecutionContext, forecast: str) -> None:
    context.log.info("forecast: %s", forecast)


@dg.job(description="A job whose first step fails once and is retried.")
def forecast():
    publish(fetch_forecast())


@dg.op
def check_for_snow_in_july(context: dg.OpExecutionContext) -> None:
    snowy = [r["date"] for r in readings() if r["weather"] == "snow" and r["date"][5:7] == "07"]
    if not snowy:
        raise dg.Failure("It never snowed in July.", metadata={"days checked": 4 * 31})


@dg.job(description="A job that fails, for the demo's sake.")
def snow_in_july():
    check_for_snow_in_july()


yearly = dg.define_asset_job("yearly", selection=[days_by_year, rain_by_year])
monthly = dg.define_asset_job("monthly", selection=[month_temperatures], partitions_def=months)

defs = dg.Definitions(
    assets=[days_by_year, rain_by_year, month_temperatures],
    jobs=[yearly, monthly, forecast, snow_in_july],
    executor=dg.in_process_executor,
)
