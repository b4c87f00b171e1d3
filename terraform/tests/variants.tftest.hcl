# What the options change.

mock_provider "google" {
  override_during = plan
}

mock_provider "archive" {
  override_during = plan
}

variables {
  project  = "test-project"
  location = "us-central1"
  queues   = { feeds = {} }
  join = {
    queue            = "feeds:feeds"
    source_directory = "./examples/minimal/handlers"
  }
}

run "an_existing_instance" {
  command = plan
  variables {
    memorystore = { existing = "projects/other/locations/us-east1/instances/shared" }
  }

  assert {
    condition     = length(google_memorystore_instance.this) == 0 && length(google_network_connectivity_service_connection_policy.memorystore) == 0
    error_message = "Nothing must be made beside an existing instance."
  }
  assert {
    condition     = output.environment.FORKJOIN_MEMORYSTORE == "projects/other/locations/us-east1/instances/shared"
    error_message = "The code must be told of the existing instance."
  }
  assert {
    condition     = alltrue([for one in google_project_iam_member.memorystore_connect : one.project == "other"])
    error_message = "The right to connect must be given where the instance is."
  }
}

run "an_existing_network" {
  command = plan
  variables {
    network = { network = "net", subnetwork = "sub" }
  }

  assert {
    condition     = length(google_compute_network.this) == 0 && length(google_compute_subnetwork.this) == 0
    error_message = "No network must be made beside an existing one."
  }
  assert {
    condition     = google_network_connectivity_service_connection_policy.memorystore[0].network == "net"
    error_message = "Memorystore's endpoint must be in the existing network."
  }
}

run "cluster_mode" {
  command = plan
  variables {
    memorystore = { cluster = true, shards = 3, persistence = "RDB" }
  }

  assert {
    condition     = google_memorystore_instance.this[0].mode == "CLUSTER" && google_memorystore_instance.this[0].shard_count == 3
    error_message = "Cluster mode must have its shards."
  }
  assert {
    condition     = length(google_memorystore_instance.this[0].persistence_config[0].rdb_config) == 1 && length(google_memorystore_instance.this[0].persistence_config[0].aof_config) == 0
    error_message = "Only the persistence that is on may be configured."
  }
}

run "an_existing_database" {
  command = plan
  variables {
    database = { id = "(default)", create = false }
  }

  assert {
    condition     = length(google_firestore_database.this) == 0 && google_firestore_field.expiry.database == "(default)"
    error_message = "TTL and exemptions must go to the existing database."
  }
}

run "an_archive" {
  command = plan
  variables {
    join = { queue = "feeds:feeds", archive = "./tests/variants.tftest.hcl" }
  }

  assert {
    condition     = length(data.archive_file.functions) == 0 && google_storage_bucket_object.functions.source == "./tests/variants.tftest.hcl"
    error_message = "An archive must be deployed as it is."
  }
}

run "disposable" {
  command = plan
  variables {
    deletion_protection = false
  }

  assert {
    condition     = google_firestore_database.this[0].delete_protection_state == "DELETE_PROTECTION_DISABLED" && google_memorystore_instance.this[0].deletion_protection_enabled == false
    error_message = "Without deletion_protection everything must go with `terraform destroy`."
  }
}

run "paused" {
  command = plan
  variables {
    queues = { feeds = { paused = true, max_concurrent_dispatches = 7 } }
  }

  assert {
    condition     = google_cloud_tasks_queue.this["feeds-1"].desired_state == "PAUSED" && google_cloud_tasks_queue.this["feeds-1"].rate_limits[0].max_concurrent_dispatches == 7
    error_message = "A queue's own settings must reach it."
  }
}

run "more_enqueuers" {
  command = plan
  variables {
    enqueuers = ["frontend@test-project.iam.gserviceaccount.com"]
  }

  assert {
    condition = contains(
      [for one in google_cloud_tasks_queue_iam_member.enqueuer : one.member],
      "serviceAccount:frontend@test-project.iam.gserviceaccount.com"
    ) && google_project_iam_member.database["frontend@test-project.iam.gserviceaccount.com"].role == "roles/datastore.user"
    error_message = "A service account of the user's own must be able to enqueue."
  }
}
