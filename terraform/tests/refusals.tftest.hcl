# What is wrong is refused before anything is made. tests/terraform/ looks at what is said.

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

run "a_setting_out_of_its_range" {
  command = plan
  variables {
    queues = { feeds = { batch_size = 1001 } }
  }
  expect_failures = [var.queues]
}

run "a_count_that_is_not_whole" {
  command = plan
  variables {
    queues = { feeds = { shards = 1.5 } }
  }
  expect_failures = [var.queues]
}

run "two_settings_at_odds" {
  command = plan
  variables {
    queues = { feeds = { batch_size = 1000, max_batch_items = 500 } }
  }
  expect_failures = [var.queues]
}

run "a_choice_that_is_none" {
  command = plan
  variables {
    queues = { feeds = { storage = "disk" } }
  }
  expect_failures = [var.queues]
}

run "a_queue_name_that_is_none" {
  command = plan
  variables {
    queues = { Feeds = {} }
  }
  expect_failures = [var.queues]
}

run "no_queue" {
  command = plan
  variables {
    queues = {}
  }
  expect_failures = [var.queues]
}

run "shards_without_cluster_mode" {
  command = plan
  variables {
    memorystore = { shards = 3 }
  }
  expect_failures = [var.memorystore]
}

run "a_directory_without_a_module" {
  command = plan
  variables {
    join = { queue = "feeds:feeds", source_directory = "./tests" }
  }
  expect_failures = [var.join]
}

run "a_variable_that_this_module_sets" {
  command = plan
  variables {
    join = {
      queue            = "feeds:feeds"
      source_directory = "./examples/minimal/handlers"
      environment      = { FORKJOIN_ALLOW_UNAUTHENTICATED = "true" }
    }
  }
  expect_failures = [var.join]
}

run "a_service_account_with_a_prefix" {
  command = plan
  variables {
    enqueuers = ["serviceAccount:frontend@test-project.iam.gserviceaccount.com"]
  }
  expect_failures = [var.enqueuers]
}
