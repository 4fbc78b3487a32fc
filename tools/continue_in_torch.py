"""torchrun --nproc-per-node 2 tools/continue_in_torch.py MODEL TEXT STEPS"""
import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, path, steps = sys.argv[1:4]
dist.init_process_group("gloo")                         # GPUs: "nccl", .to(device)
torch.manual_seed(dist.get_rank())                      # other windows in each process
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory).train()
ids = torch.tensor(tokenizer.encode(open(path).read(), add_special_tokens=False))
parallel = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
windows = ids.unfold(0, model.config.n_positions, 1)    # all of them, as a view
for step in range(int(steps)):
    batch = windows[torch.randint(len(windows), (12,))]
    inputs = batch.clone()
    inputs[:, 0] = model.config.bos_token_id            # as ours begin
    loss = parallel(input_ids=inputs, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
if dist.get_rank() == 0:
    model.save_pretrained(f"{directory}-torch")
    tokenizer.save_pretrained(f"{directory}-torch")
dist.barrier()                                          # none leaves before the others
dist.destroy_process_group()
