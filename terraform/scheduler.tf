resource "google_cloud_scheduler_job" "sweep" {
  project     = var.project
  region      = var.location
  name        = local.sweep_name
  description = "Schedules batches again that nobody is working on."
  schedule    = var.sweep.schedule
  time_zone   = "Etc/UTC"
  paused      = var.sweep.paused

  attempt_deadline = "180s"

  retry_config {
    retry_count = 1
  }

  http_target {
    http_method = "POST"
    uri         = local.sweep_url

    oidc_token {
      service_account_email = google_service_account.this["scheduler"].email
      audience              = local.sweep_url
    }
  }

  depends_on = [google_cloudfunctions2_function.sweep]
}
