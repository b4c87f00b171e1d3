locals {
  # Named as the code names them: QUEUE-1 … QUEUE-N.
  task_queues = merge([
    for name, queue in var.queues : {
      for shard in range(1, coalesce(queue.shards, local.queue_settings.shards.default) + 1) :
      "${name}-${shard}" => queue
    }
  ]...)

  # What the join function takes at once, shared out: more would only be answered 429, and slow
  # the queues down.
  join_capacity = var.join.max_instances * var.join.request_concurrency
}

resource "google_cloud_tasks_queue" "this" {
  for_each = local.task_queues

  project       = var.project
  name          = each.key
  location      = var.location
  desired_state = each.value.paused ? "PAUSED" : "RUNNING"

  rate_limits {
    max_dispatches_per_second = each.value.max_dispatches_per_second
    max_concurrent_dispatches = coalesce(
      each.value.max_concurrent_dispatches,
      max(1, min(5000, floor(local.join_capacity / length(local.task_queues))))
    )
  }

  # A task is repeated where the machinery failed (503), or where the same chunk is being handled
  # by another request (409); never for a handler's sake. So it is repeated until it is done: a
  # task given up would leave its batch to the sweeper.
  retry_config {
    max_attempts       = -1
    max_retry_duration = "0s"
    min_backoff        = "2s"
    max_backoff        = "60s"
    max_doublings      = 5
  }

  dynamic "stackdriver_logging_config" {
    for_each = var.task_log_sampling > 0 ? [var.task_log_sampling] : []
    content {
      sampling_ratio = stackdriver_logging_config.value
    }
  }

  depends_on = [google_project_service.this]
}
