# Metrics are made of what the code logs (docs/configuration.md, "Logs"); tests/terraform/ runs the
# code and holds these to what it says.

locals {
  # The queues of this deployment, whichever service logs of them.
  of_our_queues = join(" OR ", formatlist("\"%s\"", keys(var.queues)))

  log_metrics = {
    items_handled     = { event = "chunk", value = "handled", description = "Items that a handler brought to an end." }
    items_left        = { event = "chunk", value = "left", description = "Items left to a later try." }
    dead_letters      = { event = "chunk", value = "dead", description = "Items given up." }
    late_releases     = { event = "late", value = null, description = "Writers that came too late for a batch; their items moved." }
    deferred          = { event = "deferred", value = null, description = "Root tasks that Cloud Tasks did not take." }
    memorystore_aways = { event = "memorystore_away", value = null, description = "How often a process found Memorystore away." }
    swept_batches     = { event = "swept", value = null, description = "Batches that the sweeper scheduled again." }
    sweeps            = { event = "sweep", value = null, description = "Sweeps of a queue." }
  }
  # As PromQL calls them; what each line counts is summed.
  promql_names = {
    for name, metric in local.log_metrics :
    name => "logging_googleapis_com:user_${replace(var.name, "-", "_")}_${name}${metric.value == null ? "" : "_sum"}{monitored_resource=\"cloud_run_revision\"}"
  }

  task_queues_pattern = "^(${join("|", keys(var.queues))})-[0-9]+$"
  # Retries may lie in the queues for that long, and nothing be wrong.
  longest_backoff = max([
    for queue in var.queues : coalesce(queue.retry_max_backoff, local.queue_settings.retry_max_backoff.default)
  ]...)
  stall_seconds = min(43200, max(1800, 2 * local.longest_backoff))

  log_alarms = {
    dead_letters = {
      name     = "items are given up"
      severity = "ERROR"
      query    = "sum(increase(${local.promql_names.dead_letters}[10m])) > ${var.alarms.dead_letters}"
      todo     = "Items were rejected, or failed all their tries. `forkjoin dead list` shows them with their errors, `forkjoin dead requeue` tries them again."
    }
    late_releases = {
      name     = "writers are late"
      severity = "WARNING"
      query    = "sum(increase(${local.promql_names.late_releases}[10m])) > ${var.alarms.late_releases}"
      todo     = "Nothing is lost: their items move to another batch, and are handled later. Memorystore lost its state or cannot be reached, or Firestore takes longer than `writer_timeout`."
    }
    memorystore_aways = {
      name     = "Memorystore is away"
      severity = "WARNING"
      query    = "sum(increase(${local.promql_names.memorystore_aways}[10m])) > 0"
      todo     = "Items are taken without it, on the clock lane, and are handled a little later. Root tasks of other batches wait for it."
    }
    swept_batches = {
      name     = "the sweeper finds forgotten batches"
      severity = "WARNING"
      query    = "sum(increase(${local.promql_names.swept_batches}[1h])) > 0"
      todo     = "A task was lost: Cloud Tasks refused it (see `deferred` in the logs), somebody deleted or purged it, or the queue does not dispatch. The batch was scheduled again."
    }
    sweeps = {
      name     = "the sweeper does not run"
      severity = "ERROR"
      query    = "(sum(increase(${local.promql_names.sweeps}[${var.alarms.sweep_silence}s])) or vector(0)) == 0"
      todo     = "Cloud Scheduler does not call it, or it fails: see the job `${local.sweep_name}` and the function's log. What Cloud Tasks loses is found by nobody."
    }
    stalled_queues = {
      name     = "a queue dispatches nothing"
      severity = "ERROR"
      query    = "max by (queue_id) (cloudtasks_googleapis_com:queue_depth{monitored_resource=\"cloud_tasks_queue\", queue_id=~\"${local.task_queues_pattern}\"}) > 0 unless sum by (queue_id) (increase(cloudtasks_googleapis_com:queue_task_attempt_count{monitored_resource=\"cloud_tasks_queue\", queue_id=~\"${local.task_queues_pattern}\"}[${local.stall_seconds}s])) > 0"
      todo     = "It has had tasks for ${local.stall_seconds} s and sent none: it is paused, or all of them are to run later than that."
    }
  }
}

resource "google_logging_metric" "this" {
  for_each = local.log_metrics

  project         = var.project
  name            = "${var.name}/${each.key}"
  description     = each.value.description
  filter          = <<-EOT
    resource.type="cloud_run_revision"
    jsonPayload.forkjoin.event="${each.value.event}"
    jsonPayload.forkjoin.queue=(${local.of_our_queues})
  EOT
  value_extractor = each.value.value == null ? null : "EXTRACT(jsonPayload.forkjoin.${each.value.value})"

  label_extractors = {
    queue = "EXTRACT(jsonPayload.forkjoin.queue)"
  }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = each.value.value == null ? "INT64" : "DISTRIBUTION"
    unit        = "1"

    labels {
      key        = "queue"
      value_type = "STRING"
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "log" {
  for_each = { for name, alarm in local.log_alarms : name => alarm if !(name == "sweeps" && var.sweep.paused) }

  project               = var.project
  display_name          = "${var.name}: ${each.value.name}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.alarms.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.name

    condition_prometheus_query_language {
      query               = each.value.query
      duration            = each.key == "stalled_queues" ? "${local.stall_seconds}s" : "0s"
      evaluation_interval = "60s"
      # A metric is there only after the first line that it counts.
      disable_metric_validation = true
    }
  }

  documentation {
    content = each.value.todo
  }

  depends_on = [google_logging_metric.this]
}

resource "google_monitoring_alert_policy" "late_tasks" {
  project               = var.project
  display_name          = "${var.name}: tasks are dispatched late"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.alarms.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = "tasks are dispatched late"

    condition_threshold {
      filter          = "resource.type = \"cloud_tasks_queue\" AND metric.type = \"cloudtasks.googleapis.com/queue/task_attempt_delays\" AND resource.labels.queue_id = monitoring.regex.full_match(\"${local.task_queues_pattern}\")"
      comparison      = "COMPARISON_GT"
      threshold_value = var.alarms.task_delay * 1000 # the metric's unit is ms
      duration        = "300s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_PERCENTILE_99"
        cross_series_reducer = "REDUCE_MAX"
        group_by_fields      = ["resource.labels.queue_id"]
      }
    }
  }

  documentation {
    content = "The oldest tasks wait longer than ${var.alarms.task_delay} s. The join function takes too few at once (join.max_instances, request_concurrency, the queues' max_concurrent_dispatches), is slow, or answers 503: see its log."
  }
}

resource "google_monitoring_alert_policy" "memory" {
  count = local.memorystore_project == var.project ? 1 : 0

  project               = var.project
  display_name          = "${var.name}: Memorystore fills up"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.alarms.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = "Memorystore fills up"

    condition_threshold {
      filter          = "resource.type = \"memorystore.googleapis.com/Instance\" AND metric.type = \"memorystore.googleapis.com/instance/memory/maximum_utilization\" AND resource.labels.instance_id = monitoring.regex.full_match(\"(.*/)?${local.memorystore_id}\")"
      comparison      = "COMPARISON_GT"
      threshold_value = var.alarms.memory
      duration        = "300s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_MAX"
        cross_series_reducer = "REDUCE_MAX"
      }
    }
  }

  documentation {
    content = "It evicts nothing: when it is full, nothing can be reserved. A lane needs a few hundred bytes; with storage = \"memorystore\" the items are there. Give it a larger node_type, or shards in cluster mode."
  }
}

locals {
  charts = [
    { title = "Items", series = { handled = "sum(rate(${local.promql_names.items_handled}[5m]))", left = "sum(rate(${local.promql_names.items_left}[5m]))", dead = "sum(rate(${local.promql_names.dead_letters}[5m]))" } },
    { title = "Items handled, by queue", series = { handled = "sum by (queue) (rate(${local.promql_names.items_handled}[5m]))" } },
    { title = "Tasks in the queues", series = { depth = "sum by (queue_id) (cloudtasks_googleapis_com:queue_depth{monitored_resource=\"cloud_tasks_queue\", queue_id=~\"${local.task_queues_pattern}\"})" } },
    { title = "Attempts by answer", series = { attempts = "sum by (response_code) (rate(cloudtasks_googleapis_com:queue_task_attempt_count{monitored_resource=\"cloud_tasks_queue\", queue_id=~\"${local.task_queues_pattern}\"}[5m]))" } },
    { title = "Late, deferred, swept (in 10 min)", series = { late = "sum(increase(${local.promql_names.late_releases}[10m]))", deferred = "sum(increase(${local.promql_names.deferred}[10m]))", swept = "sum(increase(${local.promql_names.swept_batches}[10m]))" } },
    { title = "Instances of the functions", series = { instances = "sum by (service_name) (run_googleapis_com:container_instance_count{monitored_resource=\"cloud_run_revision\", service_name=~\"${local.join_name}|${local.sweep_name}\"})" } },
  ]
}

resource "google_monitoring_dashboard" "this" {
  project = var.project

  dashboard_json = jsonencode({
    displayName = var.name
    mosaicLayout = {
      columns = 48
      tiles = [
        for place, chart in local.charts : {
          xPos   = 24 * (place % 2)
          yPos   = 16 * floor(place / 2)
          width  = 24
          height = 16
          widget = {
            title = chart.title
            xyChart = {
              dataSets = [
                for name, query in chart.series : {
                  plotType        = "LINE"
                  legendTemplate  = name
                  timeSeriesQuery = { prometheusQuery = query }
                }
              ]
            }
          }
        }
      ]
    }
  })

  depends_on = [google_project_service.this]
}
