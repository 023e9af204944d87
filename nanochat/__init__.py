"""nanochat: from raw text to a chat assistant of your own, in one small repository.

The house has floors. A room (module) imports only from floors below it and from rooms to its left on its own floor;
scripts are the doors and nothing imports a door; tasks stand beside and see floors 0 and 1 only.
`tests/test_architecture.py` reads this plan and holds the imports against it.

4 behaviour  checkpoint_files checkpoint_manager loss_eval training_run training rows scheduler engine task_eval
             core_eval rollout serving
3 model      attention kv_cache chunked_loss tricks gpt quantize decoder step_graphs muon averaging optim rehearsal
             sampling prefixes
2 machine    runtime calibration dataloader
1 tokens     shard_writer text_import chat_format transcript tokenizer_files tokenizer_base huggingface_tokenizer
             tokenizer dataset document_stream tinyworld_facts tinyworld_problems tinyworld_stories tinyworld_chats
             tinyworld
0 ground     paths command log signals guards download hub_shards hardware gpt_config schedule plan forecast
             calculator tools execution conversation terminal curves run_curves report packing

A line knows its room by one question: what must be there for it to run? Only numbers: ground. A vocabulary: tokens.
A device: machine. Weights: model. A checkpoint or a task: behaviour. A person: a script.
"""
