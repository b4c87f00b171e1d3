# What the module makes, with all of its defaults but for one queue of three shards and another.

mock_provider "google" {
  override_during = plan

  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
  mock_resource "google_firestore_database" {
    defaults = { name = "forkjoin" }
  }

  override_resource {
    target = google_service_account.this["enqueuer"]
    values = { email = "enqueuer@test", member = "serviceAccount:enqueuer@test", name = "sa/enqueuer" }
  }
  override_resource {
    target = google_service_account.this["join"]
    values = { email = "join@test", member = "serviceAccount:join@test", name = "sa/join" }
  }
  override_resource {
    target = google_service_account.this["sweeper"]
    values = { email = "sweeper@test", member = "serviceAccount:sweeper@test", name = "sa/sweeper" }
  }
  override_resource {
    target = google_service_account.this["invoker"]
    values = { email = "invoker@test", member = "serviceAccount:invoker@test", name = "sa/invoker" }
  }
  override_resource {
    target = google_service_account.this["scheduler"]
    values = { email = "scheduler@test", member = "serviceAccount:scheduler@test", name = "sa/scheduler" }
  }
  override_resource {
    target = google_service_account.this["builder"]
    values = { email = "builder@test", member = "serviceAccount:builder@test", name = "sa/builder", id = "sa/builder" }
  }
}

mock_provider "archive" {
  override_during = plan
}

variables {
  project  = "test-project"
  location = "us-central1"
  queues = {
    feeds = { shards = 3, batch_size = 200, dispatch_deadline = 900 }
    mails = {}
  }
  join = {
    queue            = "feeds:feeds"
    source_directory = "./examples/minimal/handlers"
  }
}

run "plan" {
  command = plan

  assert {
    condition     = toset(keys(google_cloud_tasks_queue.this)) == toset(["feeds-1", "feeds-2", "feeds-3", "mails-1"])
    error_message = "The queues must be one a shard, named as the code names them."
  }

  assert {
    condition = alltrue([
      for queue in google_cloud_tasks_queue.this :
      queue.retry_config[0].max_attempts == -1 && queue.retry_config[0].max_retry_duration == "0s"
    ])
    error_message = "Tasks must be repeated until they are done."
  }

  assert {
    # 100 instances of 10 requests, for 4 queues.
    condition     = alltrue([for queue in google_cloud_tasks_queue.this : queue.rate_limits[0].max_concurrent_dispatches == 250])
    error_message = "The join function's capacity must be shared out."
  }

  assert {
    condition     = google_cloudfunctions2_function.join.service_config[0].timeout_seconds == 900
    error_message = "The platform must not end a request before its task's deadline."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.join.service_config[0].ingress_settings == "ALLOW_INTERNAL_ONLY" &&
      google_cloudfunctions2_function.sweep.service_config[0].ingress_settings == "ALLOW_INTERNAL_ONLY"
    )
    error_message = "The functions must be reached from inside only."
  }

  assert {
    condition     = google_cloudfunctions2_function.join.service_config[0].environment_variables["THREADS"] == "10"
    error_message = "A request holds a thread: there must be as many as requests at once."
  }

  assert {
    condition = (
      google_cloud_scheduler_job.sweep.http_target[0].oidc_token[0].service_account_email == google_cloudfunctions2_function.sweep.service_config[0].environment_variables["FORKJOIN_SWEEP_INVOKER"] &&
      google_cloud_scheduler_job.sweep.http_target[0].oidc_token[0].audience == google_cloudfunctions2_function.sweep.service_config[0].environment_variables["FORKJOIN_SWEEP_AUDIENCE"] &&
      google_cloud_scheduler_job.sweep.http_target[0].uri == "https://forkjoin-sweep-123456789012.us-central1.run.app"
    )
    error_message = "The job's token must be the one that the sweep function asks for."
  }

  assert {
    condition     = output.environment.FORKJOIN_JOIN_URL == "https://forkjoin-join-123456789012.us-central1.run.app"
    error_message = "Internal ingress takes Cloud Tasks' requests at the function's run.app URL only."
  }

  assert {
    condition     = jsondecode(output.environment.FORKJOIN_SETTINGS) == { feeds = { batch_size = 200, dispatch_deadline = 900, shards = 3 } }
    error_message = "What was set for a queue must go to the code, and nothing else."
  }

  assert {
    condition     = google_firestore_field.expiry.field == "expire_at" && google_firestore_field.expiry.collection == "fj_segments" && length(google_firestore_field.expiry.ttl_config) == 1
    error_message = "Segments must expire."
  }

  assert {
    condition     = google_memorystore_instance.this[0].engine_configs["maxmemory-policy"] == "noeviction" && google_memorystore_instance.this[0].authorization_mode == "IAM_AUTH" && google_memorystore_instance.this[0].transit_encryption_mode == "SERVER_AUTHENTICATION"
    error_message = "Memorystore must evict nothing, ask who is there, and encrypt."
  }

  assert {
    condition = toset([for one in google_service_account_iam_member.act_as_invoker : "${one.service_account_id} ${one.role} ${one.member}"]) == toset([
      "sa/invoker roles/iam.serviceAccountUser serviceAccount:enqueuer@test",
      "sa/invoker roles/iam.serviceAccountUser serviceAccount:join@test",
      "sa/invoker roles/iam.serviceAccountUser serviceAccount:sweeper@test",
    ])
    error_message = "Who creates tasks must be able to act as the invoker, and as nobody else."
  }
}
